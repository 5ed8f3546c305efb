"""What a run says of its annotators: whose labels it has, and how far they agree."""

from collections import Counter
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
NOT_MET_AS_MERGED = "not met by the merged label"
_WITH_INTERVAL = ("alpha", "agreement", "evidence_char_f1")


@dataclass(frozen=True)
class AnnotatorReport:
    """The annotators of a corpus.

    Attributes:
        rule: of `data.merge`.
        besides: the annotator of `data.merge=annotator:ID`, who may have seen and adjudicated the labels
            of the others: no figure of agreement counts its votes. None under the other rules.
        seen: how many pairs each has seen, by id.
        n_pairs: judged by at least one of them.
        n_partial: of them, left out of all that follows, see `Example.votes_are_partial`.
        n_shared: of the others, seen by two or more.
        n_disagreements: of these, with different labels.
        n_ties: of these, with as many labels that say met as not met.
        n_not_seen: pairs left out, see `LabelReport.pairs_not_seen`.
        names: of the criteria, by id.
        agreement: of `agreement_metrics`, on these pairs.
    """

    rule: str
    besides: str | None
    seen: dict[str, int]
    n_pairs: int
    n_partial: int
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
            f"{what_agreement_is_over(vars(self))} Merged by `data.merge={self.rule}`."
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


def what_agreement_is_over(found: Mapping[str, Any]) -> str:
    """Return sentences on the pairs that the agreement is over, and on how many of them it fails.

    Args:
        found: of `AnnotatorReport.to_json`.
    """
    besides, n_partial = found.get("besides"), found.get("n_partial")
    who = "two or more" if besides is None else f"two or more besides {besides}"
    left_out = [] if besides is None else [f"{besides}, who may have adjudicated their labels"]
    if n_partial:
        left_out.append(
            f"{n_partial:,} pairs of sentences of posts and criteria where a met label has no place"
        )
    said = (
        f"{found['n_shared']:,} of {found['n_pairs']:,} pairs were seen by {who}; these disagree on "
        f"{found['n_disagreements']:,} ({found['n_ties']:,} ties)."
    )
    return f"{said} Agreement leaves out {'; and '.join(left_out)}." if left_out else said


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
        examples: all pairs that one of them has seen, those that have no merged label among them.
        labels: the counts of the labels.
        criteria: of the corpus.
    """
    besides = panel.rule.annotator_id
    others = [name for name in panel.annotator_ids if name != besides]
    columns = {name: column for column, name in enumerate(others)}
    seen = Counter(vote.annotator_id for example in examples for vote in example.votes)
    n_pairs = sum(bool(example.votes) for example in examples)
    voted = [e for e in examples if e.votes and not e.votes_are_partial]
    votes = np.full((len(voted), len(columns)), -1, dtype=np.int64)
    for row, example in enumerate(voted):
        for vote in example.votes:
            if vote.annotator_id in columns:
                votes[row, columns[vote.annotator_id]] = vote.label
    pairs = AnnotatedPairs(
        votes,
        np.asarray([example.criterion_id for example in voted], dtype=np.str_),
        np.asarray([example.group_id for example in voted], dtype=np.str_),
        [
            {
                columns[vote.annotator_id]: [(s.start_char, s.end_char) for s in vote.evidence]
                for vote in example.votes
                if vote.evidence and vote.annotator_id in columns
            }
            for example in voted
        ],
    )
    met, unmet = (votes == 1).sum(axis=1), (votes == 0).sum(axis=1)
    return AnnotatorReport(
        rule=str(panel.rule),
        besides=besides,
        seen={name: seen[name] for name in panel.annotator_ids},
        n_pairs=n_pairs,
        n_partial=n_pairs - len(voted),
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
