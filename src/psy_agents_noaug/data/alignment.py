"""Where in a post the evidence is: offsets for evidence that was given as text.

The steps are tried in order: verbatim, folded (case, whitespace, typographic quotes, dashes and
ellipses), fuzzy (`rapidfuzz.fuzz.partial_ratio_alignment`). What none of them finds is lost, and
the report names it.
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
    """How the evidence of each annotation that has any was found.

    `counts` has every kind; `ids` lists "post_id/criterion_id/row" for folded, fuzzy (with the
    score) and lost. `hard_negatives` counts rows of status 0 with evidence.
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
    """A folded text; folded character i comes from `starts[i]:ends[i]` of the original."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]


def fold(text: str) -> str:
    """Casefold, make typographic punctuation ASCII and runs of whitespace one space; strip."""
    return " ".join(text.translate(_TO_ASCII).casefold().split())


def align(
    evidence_text: str, text: str, *, fuzzy_threshold: float
) -> tuple[AlignmentKind, Span | None, float]:
    """Find evidence in a post.

    Returns the kind, the span in `text` without surrounding whitespace, and a score of 0 to 100:
    100 for verbatim and folded, rapidfuzz's for fuzzy, 0 for lost. The first occurrence counts. A
    fuzzy match is moved to the nearest word borders. Evidence that is as long as the text or longer
    is compared with all of it, as a partial ratio would match the text with a part of the evidence.

    `fuzzy_threshold` is the lowest score accepted, above 0 up to 100; raises ConfigError otherwise.
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
    """Find the evidence of all annotations, those of status 0 included.

    Returns the spans by annotation row, without the rows that have no evidence or lost it, and the
    report. Offsets that the corpus gives are taken as they are.
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


@lru_cache(maxsize=1)  # the annotations of a post come one after the other
def _fold_with_offsets(text: str) -> _Folded:
    """Fold as `fold` does, and remember where each character came from."""
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
    """Find the first occurrence that does not begin or end inside a character like ß (ss) or …"""
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
    """Move both ends to the nearest word border (outward on a tie), and mind the punctuation there.

    The window rapidfuzz finds has the length of the evidence, and so cuts into the neighbouring
    words, or out of the last one, by as much as the lengths differ.
    """
    before, after = _word_around(text, start)
    if before < start < after:
        start = before if start - before <= after - start else after
    before, after = _word_around(text, end)
    if before < end < after:
        end = after if after - end <= end - before else before
    opening = "" if evidence[0] in _CLOSING else _CLOSING  # the end of the sentence before
    while start < end and (text[start].isspace() or text[start] in opening):
        start += 1
    while evidence[-1] in _CLOSING and end < len(text) and text[end] in _CLOSING:
        end += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return Span(start, end) if start < end else None


def _word_around(text: str, border: int) -> tuple[int, int]:
    """Return the word that a border between two characters cuts, empty if it cuts none."""
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
