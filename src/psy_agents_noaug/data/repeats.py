"""Evidence that occurs several times in its post: which occurrence an annotation means."""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence

from psy_agents_noaug.data.corpus import Annotation
from psy_agents_noaug.data.sentences import sentences
from psy_agents_noaug.data.span import Span

_NUMBER = re.compile(r"[^0-9]*([0-9]{1,9})")


def choose_occurrences(
    rows: Sequence[Annotation], spans: Sequence[Span], *, text: str, first_number: int
) -> tuple[dict[int, Span], bool]:
    """Choose an occurrence for each of the rows that name the same evidence.

    Rows with the same `sentence_id` mean the same occurrence; others are copies of each other, and as
    many copies as occurrences take one each, in order. Of fewer copies each takes the occurrence in the
    sentence that is nearest to the number in its `sentence_id` (ReDSM5's is post_id + "_" + number), as
    two ways to find sentences may count them differently. Without such numbers the first are taken.

    Args:
        rows: annotations of one post and criterion, in the order of the file.
        spans: the occurrences, left to right, at least one.
        text: the post.
        first_number: the number of a post's first sentence, see `first_sentence_number`.

    Returns:
        The spans by annotation row; whether they are beyond doubt.
    """
    copies: dict[str | int, list[Annotation]] = {}
    for row in rows:
        copies.setdefault(row.sentence_id or row.row, []).append(row)
    starts = [sentence.start_char for sentence in sentences(text)]
    numbers = {
        key: number
        for key, (row, *_) in copies.items()
        if (number := _sentence_number(row)) is not None and number <= len(starts)
    }
    is_numbered = len(numbers) == len(copies)
    order = sorted(copies, key=numbers.__getitem__) if is_numbered else list(copies)
    is_clear = len(spans) == 1 or len(order) == len(spans)
    if is_numbered and not is_clear:
        found = [_sentence_of(span, starts) for span in spans]
        chosen, is_clear = _nearest([numbers[key] - first_number for key in order], found)
    else:
        chosen = [min(place, len(spans) - 1) for place in range(len(order))]
        is_clear = len(order) >= len(spans)
    return {
        row.row: spans[place]
        for key, place in zip(order, chosen, strict=True)
        for row in copies[key]
    }, is_clear


def first_sentence_number(
    repeats: Sequence[tuple[Sequence[Annotation], Sequence[Span]]], texts: Mapping[str, str]
) -> int:
    """Return whether the corpus numbers its sentences from 0 or from 1.

    What occurs once tells: its sentence is known, and so is its number. 0 if nothing tells.
    """
    votes: Counter[int] = Counter()
    for rows, spans in repeats:
        if len(spans) == 1:
            starts = [sentence.start_char for sentence in sentences(texts[rows[0].post_id])]
            place = _sentence_of(spans[0], starts)
            votes.update(
                number - place for row in rows if (number := _sentence_number(row)) is not None
            )
    return int(votes[1] > votes[0])


def _nearest(wanted: Sequence[int], found: Sequence[int]) -> tuple[list[int], bool]:
    """Return for each wanted sentence the place in `found` of the nearest; whether all are clear."""
    chosen, is_clear = [], True
    for sentence in wanted:
        distances = [abs(other - sentence) for other in found]
        chosen.append(distances.index(min(distances)))
        is_clear = is_clear and distances.count(min(distances)) == 1
    return chosen, is_clear and len(set(chosen)) == min(len(wanted), len(found))


def _sentence_of(span: Span, starts: Sequence[int]) -> int:
    return max(bisect_right(starts, span.start_char) - 1, 0)


def _sentence_number(annotation: Annotation) -> int | None:
    """Return the number in a `sentence_id`, after the identifier of the post if it begins with that."""
    number = _NUMBER.fullmatch((annotation.sentence_id or "").removeprefix(annotation.post_id))
    return int(number.group(1)) if number else None
