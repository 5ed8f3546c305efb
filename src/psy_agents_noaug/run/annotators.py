"""What a run says of its annotators: whose labels it has, and how far they agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import Example, LabelReport
from psy_agents_noaug.data.merging import Panel
from psy_agents_noaug.metrics.agreement import (
    EVIDENCE_FIGURES,
    AnnotatedPairs,
    agreement_metrics,
)
from psy_agents_noaug.metrics.tables import format_value, render_table, with_interval
from psy_agents_noaug.metrics.values import Metrics

# The shown names of the figures of agreement, by their keys.
AGREEMENT = {
    "alpha": "alpha",
    "fleiss_kappa": "Fleiss",
    "cohen_kappa": "Cohen",
    "agreement": "agreement",
    "positive_agreement": "positive",
}
AGREEMENT_OF_EVIDENCE = {"evidence_char_f1": "evidence F1", "evidence_exact_f1": "exact"}
MERGED_BY = "labels_merged_by"  # key of the rule, among the figures of a split
_WITH_INTERVAL = ("alpha", "agreement", "evidence_char_f1")


@dataclass(frozen=True)
class AnnotatorReport:
    """The annotators of a corpus.

    Attributes:
        rule: of `data.merge`.
        seen: how many pairs each has seen, by id.
        n_pairs: judged by at least one of them.
        n_shared: of them, seen by two or more.
        n_disagreements: of these, with different labels.
        n_ties: of these, with as many labels that say met as not met.
        n_not_seen: pairs left out, see `LabelReport.pairs_not_seen`.
        names: of the criteria, by id.
        agreement: of `agreement_metrics`, on all pairs of the corpus.
    """

    rule: str
    seen: dict[str, int]
    n_pairs: int
    n_shared: int
    n_disagreements: int
    n_ties: int
    n_not_seen: int
    names: dict[str, str]
    agreement: Metrics

    def summary(self) -> str:
        """Return how labels were merged, and the agreement, for the console."""
        lines = [
            f"Annotators, by pairs seen: {', '.join(f'{k}: {n:,}' for k, n in self.seen.items())}. "
            f"{self.n_shared:,} of {self.n_pairs:,} pairs were seen by two or more, who disagree on "
            f"{self.n_disagreements:,} ({self.n_ties:,} ties). Merged by `data.merge={self.rule}`."
        ]
        if self.n_not_seen:
            lines.append(
                f"Left out: {self.n_not_seen:,} pairs that others have seen and the annotator of "
                f"`data.merge={self.rule}` has not."
            )
        return "\n".join([*lines, self.table()] if self.n_shared else lines)

    def table(self) -> str:
        """Return the agreement by criterion and its means."""
        return render_table(agreement_rows(self.to_json()["agreement"], self.names), left=2)

    def to_json(self) -> dict[str, Any]:
        """Return plain containers, for a JSON file; an undefined figure is null, with its reason."""
        found = {name: value for name, value in vars(self).items() if name != "names"}
        reasons = {f"{key}_undefined": text for key, text in self.agreement.undefined.items()}
        return {**found, "agreement": {**self.agreement.values, **reasons}}


def merged_labels(rule: str) -> str:
    """Return a sentence on the labels that a model is evaluated against."""
    return (
        f"The labels are those of several annotators, merged by `data.merge={rule}`; all figures are "
        "against the merged labels, unless they say otherwise."
    )


def annotator_report(
    panel: Panel,
    examples: Sequence[Example],
    labels: LabelReport,
    *,
    criteria: Sequence[Criterion],
) -> AnnotatorReport:
    """Return the agreement of the annotators on all pairs of a corpus.

    Args:
        panel: the annotators.
        examples: all pairs.
        labels: the counts of their labels.
        criteria: of the corpus.
    """
    columns = {name: column for column, name in enumerate(panel.annotator_ids)}
    voted = [example for example in examples if example.votes]
    votes = np.full((len(voted), len(columns)), -1, dtype=np.int64)
    for row, example in enumerate(voted):
        for vote in example.votes:
            votes[row, columns[vote.annotator_id]] = vote.label
    pairs = AnnotatedPairs(
        votes,
        np.asarray([example.criterion_id for example in voted], dtype=np.str_),
        np.asarray([example.group_id for example in voted], dtype=np.str_),
        [
            {
                columns[vote.annotator_id]: [(s.start_char, s.end_char) for s in vote.evidence]
                for vote in example.votes
                if vote.evidence
            }
            for example in voted
        ],
    )
    met, unmet = (votes == 1).sum(axis=1), (votes == 0).sum(axis=1)
    return AnnotatorReport(
        rule=str(panel.rule),
        seen={name: int((votes[:, column] >= 0).sum()) for name, column in columns.items()},
        n_pairs=len(voted),
        n_shared=int((met + unmet >= 2).sum()),
        n_disagreements=int(((met > 0) & (unmet > 0)).sum()),
        n_ties=int(((met > 0) & (met == unmet)).sum()),
        n_not_seen=labels.pairs_not_seen or 0,
        names={criterion.criterion_id: criterion.name for criterion in criteria},
        agreement=agreement_metrics(pairs, criteria=[c.criterion_id for c in criteria]),
    )


def agreement_rows(agreement: Mapping[str, Any], names: Mapping[str, str]) -> list[list[str]]:
    """Return the head, a row per criterion and that of the means.

    Args:
        agreement: of `AnnotatorReport.to_json`.
        names: of the criteria, by id.
    """
    columns = dict(AGREEMENT)
    if any(agreement.get(name) is not None for name in EVIDENCE_FIGURES):
        columns |= AGREEMENT_OF_EVIDENCE
    rows = [["criterion", "name", "pairs", *columns.values()]]
    for criterion, name in names.items():
        prefix = f"per_criterion/{criterion}/"
        cells = [
            with_interval(agreement, f"{prefix}{key}")
            if key in _WITH_INTERVAL
            else format_value(agreement[f"{prefix}{key}"])
            for key in columns
        ]
        rows.append([criterion, name, str(agreement[f"{prefix}n_pairs"]), *cells])
    means = [
        f"{format_value(agreement[key])} of {agreement[f'{key}_n_criteria']}" for key in columns
    ]
    return [*rows, ["mean", "of the criteria where it is defined", "", *means]]
