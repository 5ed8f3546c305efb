"""Alignment of evidence: the offsets in a post of evidence that is given as text.

The steps are tried in order: verbatim, folded (case, whitespace, typographic quotes, dashes and
ellipses), fuzzy (`rapidfuzz.fuzz.partial_ratio_alignment`). Evidence that no step finds is lost, and
the report lists it.
"""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from rapidfuzz import fuzz

from psy_agents_noaug.data.corpus import Corpus
from psy_agents_noaug.errors import ConfigError

AlignmentKind = Literal["given", "verbatim", "folded", "fuzzy", "lost"]

_TO_ASCII = str.maketrans(
    dict.fromkeys("‘’‚‛′", "'")
    | dict.fromkeys("“”„‟″«»", '"')
    | dict.fromkeys("‐‑‒–—―−", "-")
    | {"…": "..."}
)
_CLOSING = ".,;:!?)]}"


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A half-open range of code points of a post."""

    start_char: int
    end_char: int


@dataclass(frozen=True, slots=True)
class AlignmentReport:
    """How the evidence of the annotations was found.

    Attributes:
        counts: annotations with evidence by kind; holds every kind.
        ids: "post_id/criterion_id/row" of folded, fuzzy (with the score) and lost evidence.
        hard_negatives: number of rows of status 0 with evidence.
    """

    counts: Mapping[AlignmentKind, int]
    ids: Mapping[AlignmentKind, Sequence[str]]
    hard_negatives: int

    def to_json(self) -> dict[str, Any]:
        """Return plain containers, for alignment.json."""
        return {
            "counts": dict(self.counts),
            "ids": {kind: list(ids) for kind, ids in self.ids.items()},
            "hard_negatives": self.hard_negatives,
        }


@dataclass(frozen=True, slots=True)
class _Folded:
    """A folded text; its character i comes from `starts[i]:ends[i]` of the original."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]


def fold(text: str) -> str:
    """Casefold, replace typographic punctuation by ASCII and whitespace by single spaces, and strip."""
    return " ".join(text.translate(_TO_ASCII).casefold().split())


def align(
    evidence_text: str, text: str, *, fuzzy_threshold: float
) -> tuple[AlignmentKind, Span | None, float]:
    """Find the first occurrence of evidence in a post.

    A fuzzy match is moved to the nearest word borders. Evidence that is at least as long as the text
    is compared with the whole text, because a partial ratio would match a part of the evidence.

    Args:
        evidence_text: the evidence to find.
        text: the post.
        fuzzy_threshold: lowest score of a fuzzy match, above 0 and at most 100.

    Returns:
        The kind; the span in `text` without surrounding whitespace, None if lost; the score, 0 to
        100: 100 for verbatim and folded, rapidfuzz's for fuzzy, 0 for lost.

    Raises:
        ConfigError: `fuzzy_threshold` is out of range.
    """
    if not 0 < fuzzy_threshold <= 100:
        raise ConfigError(
            f"`fuzzy_threshold` must be above 0 and at most 100, but is {fuzzy_threshold} instead."
        )
    evidence = evidence_text.strip()
    if not evidence:
        return "lost", None, 0.0
    start = text.find(evidence)
    if start >= 0:
        return "verbatim", Span(start, start + len(evidence)), 100.0
    folded_evidence, folded_text = fold(evidence), _fold_with_offsets(text)
    span = _find_folded(folded_evidence, folded_text)
    if span is not None:
        return "folded", span, 100.0
    return _fuzzy(folded_evidence, text, folded_text, threshold=fuzzy_threshold)


def align_corpus(
    corpus: Corpus, *, fuzzy_threshold: float
) -> tuple[dict[int, Span], AlignmentReport]:
    """Find the evidence of all annotations, including those of status 0.

    Offsets that the corpus gives are used without changes.

    Returns:
        The spans by annotation row, without rows whose evidence is missing or lost; the report.
    """
    texts = {post.post_id: post.text for post in corpus.posts}
    spans: dict[int, Span] = {}
    counts: Counter[AlignmentKind] = Counter()
    ids: dict[AlignmentKind, list[str]] = {"folded": [], "fuzzy": [], "lost": []}
    hard_negatives = 0
    for annotation in sorted(corpus.annotations, key=lambda a: (a.post_id, a.row)):
        kind: AlignmentKind
        span: Span | None
        if annotation.start_char is not None and annotation.end_char is not None:
            kind, span, score = "given", Span(annotation.start_char, annotation.end_char), 100.0
        elif annotation.evidence_text is not None:
            text = texts[annotation.post_id]
            kind, span, score = align(
                annotation.evidence_text, text, fuzzy_threshold=fuzzy_threshold
            )
        else:
            continue
        counts[kind] += 1
        hard_negatives += annotation.status == 0
        if span is not None:
            spans[annotation.row] = span
        if kind in ids:
            name = f"{annotation.post_id}/{annotation.criterion_id}/{annotation.row}"
            ids[kind].append(f"{name} ({score:.1f})" if kind == "fuzzy" else name)
    kinds: tuple[AlignmentKind, ...] = ("given", "verbatim", "folded", "fuzzy", "lost")
    report = AlignmentReport({kind: counts[kind] for kind in kinds}, ids, hard_negatives)
    return spans, report


@lru_cache(maxsize=1)  # the annotations of a post are aligned one after the other
def _fold_with_offsets(text: str) -> _Folded:
    """Fold like `fold`, without stripping, and record the original range of each character."""
    folded: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for index, character in enumerate(text):
        if character.isspace():
            if folded and folded[-1] == " ":
                continue
            produced = " "
        else:
            produced = character.translate(_TO_ASCII).casefold()
        folded.extend(produced)
        starts.extend([index] * len(produced))
        ends.extend([index + 1] * len(produced))
    return _Folded("".join(folded), starts, ends)


def _find_folded(evidence: str, folded: _Folded) -> Span | None:
    """Find the first occurrence that does not begin or end inside one character, such as ß (ss) or …"""
    start = folded.text.find(evidence)
    while start >= 0:
        end = start + len(evidence)
        first, last = folded.starts[start], folded.ends[end - 1]
        begins = start == 0 or folded.starts[start - 1] != first
        stops = end == len(folded.text) or folded.ends[end] != last
        if begins and stops:
            return Span(first, last)
        start = folded.text.find(evidence, start + 1)
    return None


def _fuzzy(
    evidence: str, text: str, folded: _Folded, *, threshold: float
) -> tuple[AlignmentKind, Span | None, float]:
    if len(evidence) >= len(folded.text.strip()):
        score = fuzz.ratio(evidence, folded.text.strip(), score_cutoff=threshold)
        if score == 0:
            return "lost", None, 0.0
        start = len(text) - len(text.lstrip())
        return "fuzzy", Span(start, len(text.rstrip())), score
    found = fuzz.partial_ratio_alignment(evidence, folded.text, score_cutoff=threshold)
    if found is None or found.dest_start >= found.dest_end:
        return "lost", None, 0.0
    start, end = folded.starts[found.dest_start], folded.ends[found.dest_end - 1]
    span = _to_word_borders(text, start, end, evidence=evidence)
    return ("lost", None, 0.0) if span is None else ("fuzzy", span, found.score)


def _to_word_borders(text: str, start: int, end: int, *, evidence: str) -> Span | None:
    """Move both ends to the nearest word border (outward on a tie), and adjust the punctuation there.

    rapidfuzz finds a window as long as the evidence. If the text has more or fewer characters at that
    place, the window ends inside a word.
    """
    before, after = _word_around(text, start)
    if before < start < after:
        start = before if start - before <= after - start else after
    before, after = _word_around(text, end)
    if before < end < after:
        end = after if after - end <= end - before else before
    opening = "" if evidence[0] in _CLOSING else _CLOSING  # closes the previous sentence
    while start < end and (text[start].isspace() or text[start] in opening):
        start += 1
    while evidence[-1] in _CLOSING and end < len(text) and text[end] in _CLOSING:
        end += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return Span(start, end) if start < end else None


def _word_around(text: str, border: int) -> tuple[int, int]:
    """Return the start and end of the word that contains `border`; both are `border` if none does."""
    before = after = border
    while before > 0 and _in_word(text[before - 1]):
        before -= 1
    while after < len(text) and _in_word(text[after]):
        after += 1
    return before, after


def _in_word(character: str) -> bool:
    return (
        character.isalnum() or character in "_'’" or unicodedata.category(character).startswith("M")
    )
