"""One label for each pair of several annotators' (`data.merge`), and what each of them says.

Who has seen a pair follows from `data.unannotated_pairs`, which says what no row means. Where it is
`negative` (annotated exhaustively), an annotator with a row of a post has judged every criterion of it,
and says "not met" of those without a row. Where it is `drop`, an annotator has judged the criteria that
it has a row of. In both cases an annotator without a row of a post has not seen it: whoever found
nothing in a post needs a row of status 0.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from psy_agents_noaug.data.corpus import Annotation
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.validation import Fault, quote_identifier, raise_faults
from psy_agents_noaug.errors import DataError, first_of


class Vote(NamedTuple):
    """What an annotator says of a pair.

    Args:
        label: 1 met, 0 not met.
        evidence: the spans that it marked, if it says met; empty where sentences are paired.
    """

    annotator_id: str
    label: int
    evidence: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class MergeRule:
    """How the label of a pair follows from the votes of those who have seen it.

    Args:
        kind: `any`: one says met. `majority`: more than half say met, so that a tie is not met.
            `unanimous`: all say met. `annotator`: the one named says met.
        annotator_id: of `annotator`.
    """

    kind: Literal["any", "majority", "unanimous", "annotator"]
    annotator_id: str | None = None

    @classmethod
    def of(cls, setting: str | None) -> "MergeRule | None":
        """Read `any`, `majority`, `unanimous` or `annotator:ID`; None: nothing is merged.

        `annotator=ID` is the same; on a command line the second sign must be quoted.

        Raises:
            ValueError: it is something else.
        """
        if setting is None:
            return None
        if named := re.fullmatch(r"annotator[:=](.+)", setting):
            return cls("annotator", named[1])
        for known in ("any", "majority", "unanimous"):
            if setting == known:
                return cls(known)
        raise ValueError(f"`setting` must be a rule of `data.merge`, but is {setting!r} instead.")

    def __str__(self) -> str:
        return self.kind if self.annotator_id is None else f"{self.kind}:{self.annotator_id}"

    def counts(self, annotator_id: str | None) -> bool:
        """Return whether the votes of an annotator count."""
        return self.annotator_id in (None, annotator_id)

    def label(self, votes: Iterable[Vote]) -> int | None:
        """Return the label of the votes; None if nobody whose vote counts has seen the pair."""
        labels = [vote.label for vote in self._counted(votes)]
        if not labels:
            return None
        needed = {"majority": len(labels) // 2 + 1, "unanimous": len(labels)}
        return int(sum(labels) >= needed.get(self.kind, 1))

    def agreeing(self, votes: Iterable[Vote], label: int) -> set[str]:
        """Return the annotators whose vote counts and is this label: theirs is the evidence."""
        return {vote.annotator_id for vote in self._counted(votes) if vote.label == label}

    def references(self, votes: Sequence[Vote]) -> Iterator[tuple[Vote, Vote]]:
        """Yield each vote with what the others say, merged by the same rule, where they say something.

        Of `annotator:ID` those are the votes of the others, each with that of ID. The evidence of a
        merged vote is that of the annotators who agree with its label; its `annotator_id` is empty.
        """
        for vote in votes:
            others = [other for other in self._counted(votes) if other is not vote]
            label = self.label(others)
            if label is not None:
                spans = {span for o in others if o.label == label for span in o.evidence}
                yield vote, Vote("", label, tuple(sorted(spans)))

    def _counted(self, votes: Iterable[Vote]) -> list[Vote]:
        return [vote for vote in votes if self.counts(vote.annotator_id)]


class Panel:
    """The annotators of a corpus and what they have seen.

    Args:
        annotations: of the corpus.
        rule: of the merged labels.
        unannotated_pairs: "negative" or "drop".

    Attributes:
        annotator_ids: sorted.

    Raises:
        DataError: rows without `annotator_id`, or there is no such annotator.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        rule: MergeRule,
        *,
        unannotated_pairs: Literal["negative", "drop"],
    ) -> None:
        self.rule = rule
        self._by_post = unannotated_pairs == "negative"
        self.annotator_ids = _annotator_ids(annotations, rule)
        seen: dict[object, set[str]] = {}
        for row in annotations:
            assert row.annotator_id is not None
            seen.setdefault(self._unit(row.post_id, row.criterion_id), set()).add(row.annotator_id)
        self._seen = {unit: tuple(sorted(names)) for unit, names in seen.items()}

    def votes(
        self,
        post_id: str,
        criterion_id: str,
        rows: Sequence[Annotation],
        *,
        spans: Mapping[int, Span],
        unknown: Collection[tuple[str, str, str | None]] = (),
    ) -> tuple[Vote, ...]:
        """Return the votes on a pair, sorted by annotator; none if nobody has seen it.

        Args:
            post_id: of the pair.
            criterion_id: of the pair.
            rows: the annotations of the pair; one annotator's count as their highest status.
            spans: of the rows with evidence, by row.
            unknown: post, criterion and annotator of labels whose sentence is not known: what is said of
                a sentence without a row is not known either.
        """
        votes = []
        for annotator in self._seen.get(self._unit(post_id, criterion_id), ()):
            own = [row for row in rows if row.annotator_id == annotator and row.status > 0]
            if own:
                found = {spans[row.row] for row in own if row.row in spans}
                votes.append(Vote(annotator, 1, tuple(sorted(found))))
            elif (
                any(row.annotator_id == annotator for row in rows)
                or (post_id, criterion_id, annotator) not in unknown
            ):
                votes.append(Vote(annotator, 0))
        return tuple(votes)

    def _unit(self, post_id: str, criterion_id: str) -> object:
        return post_id if self._by_post else (post_id, criterion_id)


def _annotator_ids(annotations: Sequence[Annotation], rule: MergeRule) -> tuple[str, ...]:
    names = {row.annotator_id for row in annotations if row.annotator_id is not None}
    if not names:
        raise DataError(
            "`data.merge` needs the column `annotator_id` in the annotations (its name in your file: "
            "`data.columns.annotations.annotator_id`), but no row has one."
        )
    faults = [
        Fault(f"annotations, row {row.row}", "must have an annotator_id")
        for row in annotations
        if row.annotator_id is None
    ]
    raise_faults(
        "`data.merge` counts the votes of annotators, but rows are nobody's. Give adjudicated labels an "
        "annotator_id of their own, which `data.merge=annotator:ID` chooses:",
        faults,
    )
    if rule.annotator_id is not None and rule.annotator_id not in names:
        known = first_of([quote_identifier(name) for name in sorted(names)])
        raise DataError(
            f"`data.merge={rule}` must name an annotator of the corpus, which has {known}."
        )
    return tuple(sorted(names))
