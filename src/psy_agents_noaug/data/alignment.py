"""Alignment of evidence: the offsets in a post of evidence that is given as text.

The steps are tried in order: verbatim, folded (see `folding`), fuzzy
(`rapidfuzz.fuzz.partial_ratio_alignment`). The first two find whole words alone, and the last only text
that negates as the evidence does. Evidence that no step finds is lost, and the report lists it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rapidfuzz import fuzz

from psy_agents_noaug.data.corpus import Annotation, Corpus
from psy_agents_noaug.data.folding import FoldedText, fold, fold_with_offsets
from psy_agents_noaug.data.negation import negations_agree
from psy_agents_noaug.data.offsets import (
    CODE_POINTS,
    GivenSpan,
    OffsetStyle,
    cuts_words,
    from_code_points,
    suggest_style,
)
from psy_agents_noaug.data.repeats import choose_occurrences, first_sentence_number
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.errors import ConfigError, first_of

AlignmentKind = Literal["given", "verbatim", "folded", "fuzzy", "lost"]

_KINDS: tuple[AlignmentKind, ...] = ("given", "verbatim", "folded", "fuzzy", "lost")
_CLOSING = ".,;:!?)]}。，、；：！？）」』】》"
_CLAUSE_BEFORE, _CLAUSE_AFTER = re.compile(r"[^.,;:!?]*$"), re.compile(r"[^.,;:!?]*")


@dataclass(frozen=True, slots=True)
class AlignmentReport:
    """How the evidence of the annotations was found.

    Annotations are named "post_id/criterion_id/row".

    Attributes:
        counts: annotations with evidence by kind; holds every kind.
        ids: of folded, fuzzy (with the score) and lost evidence.
        hard_negatives: number of rows of status 0 with evidence.
        ambiguous: evidence that occurs several times in its post, where nothing decides between them.
        missing: number of rows whose evidence text only says that there is none ("nan", "N/A").
        cut: given offsets that begin or end inside a word.
        offsets: how the offsets were read.
        suggested: another way to read them and the number of `cut` that it mends; None if none mends
            more than half.
    """

    counts: Mapping[AlignmentKind, int]
    ids: Mapping[AlignmentKind, Sequence[str]]
    hard_negatives: int
    ambiguous: Sequence[str] = ()
    missing: int = 0
    cut: Sequence[str] = ()
    offsets: OffsetStyle = CODE_POINTS
    suggested: tuple[OffsetStyle, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain containers, for alignment.json."""
        suggested = None
        if self.suggested is not None:
            style, mended = self.suggested
            suggested = {**_settings(style), "mended": mended}
        return {
            "counts": dict(self.counts),
            "ids": {kind: list(ids) for kind, ids in self.ids.items()},
            "hard_negatives": self.hard_negatives,
            "ambiguous": {"count": len(self.ambiguous), "ids": list(self.ambiguous)},
            "missing_evidence": self.missing,
            "offsets": {
                **_settings(self.offsets),
                "cut_words": {"count": len(self.cut), "ids": list(self.cut)},
                "suggested": suggested,
            },
        }

    def warnings(self) -> list[str]:
        """Return what a user should check, one sentence or two each."""
        warnings = []
        if lost := self.ids["lost"]:
            warnings.append(
                f"The evidence of {len(lost)} annotations is not in their posts (post/criterion/row): "
                f"{first_of(lost)}"
            )
        if self.ambiguous:
            warnings.append(
                f"The evidence of {len(self.ambiguous)} annotations occurs several times in its post, "
                "and nothing decides between them: the first is taken. A `sentence_id` or offsets would "
                "decide; alignment.json lists them."
            )
        if self.cut:
            remedy = "no other way to count offsets mends most of them; alignment.json lists them"
            if self.suggested is not None:
                style, mended = self.suggested
                remedy = f"`{style.settings(current=self.offsets)}` would mend {mended} of them"
            warnings.append(
                f"{len(self.cut)} of {self.counts['given']} spans given by offsets begin or end inside "
                f"a word: {remedy}."
            )
        return warnings


@dataclass(frozen=True, slots=True)
class _Match:
    """Where evidence occurs: no span if it is lost."""

    kind: AlignmentKind
    spans: Sequence[Span]
    score: float


_LOST = _Match("lost", (), 0.0)


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
    match = _find(evidence_text, text, fuzzy_threshold=fuzzy_threshold)
    return match.kind, match.spans[0] if match.spans else None, match.score


def align_corpus(
    corpus: Corpus, *, fuzzy_threshold: float, offsets: OffsetStyle = CODE_POINTS
) -> tuple[dict[int, Span], AlignmentReport]:
    """Find the evidence of all annotations, including those of status 0.

    Offsets that the corpus gives are used without changes. Where evidence occurs several times, see
    `choose_occurrences`.

    Args:
        corpus: posts and annotations, with offsets in code points.
        fuzzy_threshold: lowest score of a fuzzy match, above 0 and at most 100.
        offsets: how the files count offsets, for the report.

    Returns:
        The spans by annotation row, without rows whose evidence is missing or lost; the report.
    """
    texts = {post.post_id: post.text for post in corpus.posts}
    annotations = sorted(corpus.annotations, key=lambda a: (a.post_id, a.row))
    spans = given_spans(annotations)
    given = [annotation for annotation in annotations if annotation.row in spans]
    matches: dict[int, _Match] = {a.row: _Match("given", (spans[a.row],), 100.0) for a in given}
    repeats: list[tuple[list[Annotation], Sequence[Span]]] = []
    for rows in _same_evidence(annotations, without=spans):
        text, evidence = texts[rows[0].post_id], rows[0].evidence_text
        assert evidence is not None
        copies = len({row.sentence_id or row.row for row in rows})
        match = _find(evidence, text, fuzzy_threshold=fuzzy_threshold, copies=copies)
        matches |= {row.row: match for row in rows}
        repeats.append((rows, match.spans))
    first = first_sentence_number(repeats, texts)
    ambiguous: set[int] = set()
    for rows, found in repeats:
        if found:
            chosen, is_clear = choose_occurrences(
                rows, found, text=texts[rows[0].post_id], first_number=first
            )
            spans |= chosen
            ambiguous |= set() if is_clear else set(chosen)
    doubtful = [a for a in given if _is_cut(a, texts[a.post_id], spans[a.row])]
    report = AlignmentReport(
        **_counts(annotations, matches),
        ambiguous=[_name(a) for a in annotations if a.row in ambiguous],
        missing=corpus.n_missing_evidence,
        cut=[_name(a) for a in doubtful],
        offsets=offsets,
        suggested=suggest_style(
            [
                GivenSpan(text, *from_code_points(text, spans[a.row], offsets), None)
                for a in doubtful
                for text in [texts[a.post_id]]
            ],
            current=offsets,
        ),
    )
    return spans, report


def given_spans(annotations: Iterable[Annotation]) -> dict[int, Span]:
    """Return the spans of annotations that have offsets, by row."""
    return {
        annotation.row: Span(annotation.start_char, annotation.end_char)
        for annotation in annotations
        if annotation.start_char is not None and annotation.end_char is not None
    }


def _counts(annotations: Sequence[Annotation], matches: Mapping[int, _Match]) -> dict[str, Any]:
    """Return the fields of the report that concern each annotation by itself."""
    counts: Counter[AlignmentKind] = Counter()
    ids: dict[AlignmentKind, list[str]] = {"folded": [], "fuzzy": [], "lost": []}
    hard_negatives = 0
    for annotation in annotations:
        if (match := matches.get(annotation.row)) is None:
            continue
        counts[match.kind] += 1
        hard_negatives += annotation.status == 0
        if match.kind in ids:
            score = f" ({match.score:.1f})" if match.kind == "fuzzy" else ""
            ids[match.kind].append(_name(annotation) + score)
    return {
        "counts": {kind: counts[kind] for kind in _KINDS},
        "ids": ids,
        "hard_negatives": hard_negatives,
    }


def _settings(style: OffsetStyle) -> dict[str, Any]:
    return {"offset_unit": style.unit, "inclusive_ends": style.inclusive_ends}


def _name(annotation: Annotation) -> str:
    return f"{annotation.post_id}/{annotation.criterion_id}/{annotation.row}"


def _is_cut(annotation: Annotation, text: str, span: Span) -> bool:
    # The corpus has checked that an evidence text is the text at its offsets, so that they are right.
    return annotation.evidence_text is None and cuts_words(text, span)


def _same_evidence(
    annotations: Sequence[Annotation], *, without: Mapping[int, Span]
) -> list[list[Annotation]]:
    """Return the rows that say the same of one (post, criterion), in the order of the first ones.

    Rows of different annotators are about the same occurrence, not copies of each other.
    """
    groups: dict[tuple[str, str, float, str, str], list[Annotation]] = {}
    for a in annotations:
        if a.evidence_text is not None and a.row not in without:
            words = a.evidence_text.strip()
            key = (a.post_id, a.criterion_id, a.status, words, a.annotator_id or "")
            groups.setdefault(key, []).append(a)
    return list(groups.values())


def _find(evidence_text: str, text: str, *, fuzzy_threshold: float, copies: int = 1) -> _Match:
    """Return the occurrences of evidence, left to right; of a fuzzy match the best alone.

    Verbatim occurrences suffice, unless there are fewer than `copies` and folding finds more.
    """
    if not 0 < fuzzy_threshold <= 100:
        raise ConfigError(
            f"`fuzzy_threshold` must be above 0 and at most 100, but is {fuzzy_threshold} instead."
        )
    evidence, folded_evidence = evidence_text.strip(), fold(evidence_text)
    if not folded_evidence:
        return _LOST
    folded = fold_with_offsets(text)
    verbatim = _verbatim(evidence, text, folded)
    if len(verbatim) >= copies:
        return _Match("verbatim", verbatim, 100.0)
    spans = _folded(folded_evidence, folded)
    if len(spans) > len(verbatim):
        return _Match("folded", spans, 100.0)
    if verbatim:
        return _Match("verbatim", verbatim, 100.0)
    return _fuzzy(folded_evidence, folded, threshold=fuzzy_threshold)


def _verbatim(evidence: str, text: str, folded: FoldedText) -> list[Span]:
    """Return the occurrences that cut no word and do not overlap."""
    spans = []
    start = text.find(evidence)
    while start >= 0:
        end = start + len(evidence)
        is_whole = not (folded.cuts_word(start) or folded.cuts_word(end))
        if is_whole:
            spans.append(Span(start, end))
        start = text.find(evidence, end if is_whole else start + 1)
    return spans


def _folded(evidence: str, folded: FoldedText) -> list[Span]:
    """Return the occurrences that cut no word and no character, and do not overlap."""
    spans = []
    start = folded.text.find(evidence)
    while start >= 0:
        end = start + len(evidence)
        is_whole = (
            folded.borders[start]
            and folded.borders[end]
            and not folded.splits_character(start, end)
        )
        if is_whole:
            spans.append(folded.original(start, end))
        start = folded.text.find(evidence, end if is_whole else start + 1)
    return spans


def _fuzzy(evidence: str, folded: FoldedText, *, threshold: float) -> _Match:
    """Return the best match that negates as the evidence does.

    Where the best is refused, the text on both sides of it is searched.
    """
    best, span = 0.0, None
    stretches = [(0, len(folded.text))]
    while stretches:
        start, end = stretches.pop()
        score, window = _best_window(evidence, folded.text, start, end, threshold=threshold)
        if window is None or score <= best:
            continue
        first, last = _to_word_borders(folded, *window, evidence=evidence)
        context = _clause_around(folded.text, first, last, evidence=evidence)
        if (
            first < last
            and negations_agree(evidence, context)
            and _is_match(evidence, folded.text[first:last], threshold=threshold)
        ):
            best, span = score, folded.original(first, last)
        else:
            stretches += [(start, window[0]), (window[1], end)]
    return _LOST if span is None else _Match("fuzzy", (span,), best)


def _best_window(
    evidence: str, text: str, start: int, end: int, *, threshold: float
) -> tuple[float, tuple[int, int] | None]:
    """Return the score and the range of what resembles the evidence most in a stretch of the text."""
    stretch = text[start:end]
    words = stretch.strip()
    if len(evidence) >= len(words):
        start += len(stretch) - len(stretch.lstrip())
        score = fuzz.ratio(evidence, words, score_cutoff=threshold)
        return score, (start, start + len(words)) if score > 0 else None
    found = fuzz.partial_ratio_alignment(evidence, stretch, score_cutoff=threshold)
    if found is None or found.dest_start >= found.dest_end:
        return 0.0, None
    return found.score, (start + found.dest_start, start + found.dest_end)


def _is_match(evidence: str, found: str, *, threshold: float) -> bool:
    """Return whether a fuzzy match, widened to whole words, still is one.

    What occurs inside words alone is a selection that lost a letter at its ends ("m so tired"), if it is
    similar enough to the whole words and more than a part of one ("tired" of "retired").
    """
    if evidence in found and evidence != found.strip(_CLOSING + "'\"("):
        return " " in evidence and fuzz.ratio(evidence, found) >= threshold
    return True


def _clause_around(text: str, start: int, end: int, *, evidence: str) -> str:
    """Return a match with the words beside it that may negate it.

    If the match lacks the evidence's first words, others may stand in their place: of "I want to die"
    only "want to die" is found in "I don't want to die". So as many words and two more are added, up to
    the next punctuation; at the end likewise.
    """
    found, wanted = text[start:end].split(), evidence.split()
    if not found:
        return ""
    missing = max(len(wanted) - len(found), 0)
    before, after = _CLAUSE_BEFORE.search(text[:start]), _CLAUSE_AFTER.match(text[end:])
    left = before.group().split() if before and found[0] != wanted[0] else []
    ends = found[-1] == wanted[-1] or found[-1][-1] in _CLOSING
    right = [] if ends or not after else after.group().split()
    n = missing + 2
    return " ".join([*left[-n:], *found, *right[:n]])


def _to_word_borders(folded: FoldedText, start: int, end: int, *, evidence: str) -> tuple[int, int]:
    """Move both ends to the nearest word border (outward on a tie), and adjust the punctuation there.

    rapidfuzz finds a window as long as the evidence. If the text has more or fewer characters at that
    place, the window ends inside a word.
    """
    text = folded.text
    before, after = _borders_around(folded, start)
    start = before if start - before <= after - start else after
    before, after = _borders_around(folded, end)
    end = after if after - end <= end - before else before
    opening = "" if evidence[0] in _CLOSING else _CLOSING  # closes the previous sentence
    while start < end and (text[start].isspace() or text[start] in opening):
        start += 1
    while evidence[-1] in _CLOSING and end < len(text) and text[end] in _CLOSING:
        end += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _borders_around(folded: FoldedText, position: int) -> tuple[int, int]:
    """Return the nearest word borders before and after a position, both itself if it is one."""
    return folded.borders.rindex(1, 0, position + 1), folded.borders.index(1, position)
