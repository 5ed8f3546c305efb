"""Posts whose text is equal, or nearly equal, to that of a post in another split."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import sparse

from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.folding import fold
from psy_agents_noaug.data.splits import SPLIT_NAMES, Splits
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.utils.words import split_words

SHINGLE_WORDS = 3
_CHUNK = 2048
_WORD = re.compile(r"\w+(?:'\w+)*")


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """Pairs of posts in different splits, sorted, the earlier split first.

    Attributes:
        exact: (post_id, split, post_id, split).
        near: (post_id, split, post_id, split, Jaccard similarity).
    """

    exact: list[tuple[str, str, str, str]]
    near: list[tuple[str, str, str, str, float]]

    def to_json(self) -> dict[str, Any]:
        """Return plain containers, for a JSON file."""
        return asdict(self)


def find_duplicates_across_splits(
    posts: Sequence[Post], splits: Splits, *, threshold: float = 0.8
) -> DuplicateReport:
    """Find pairs of posts in different splits whose texts are equal or nearly equal.

    Exact duplicates are equal after folding case, whitespace and typographic punctuation. Near
    duplicates are the other pairs whose sets of word 3-grams have a Jaccard similarity (Broder 1997)
    of at least `threshold`; texts of fewer than three words are compared by their words. Candidates
    are found by prefix filtering (Chaudhuri, Ganti and Kaushik 2006), which misses no pair.

    Args:
        posts: all posts of the splits.
        splits: the split of each post.
        threshold: lowest similarity of near duplicates, above 0 and at most 1.

    Raises:
        ConfigError: `threshold` is out of range.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"`threshold` must be above 0 and at most 1, but is {threshold} instead.")
    split_of = splits.split_of()
    copies: dict[str, list[str]] = defaultdict(list)
    for post in posts:
        copies[fold(post.text)].append(post.post_id)
    ids_of_text = list(copies.values())
    splits_of = [frozenset(split_of[post_id] for post_id in ids) for ids in ids_of_text]
    exact = [
        pair
        for ids, names in zip(ids_of_text, splits_of, strict=True)
        if len(names) > 1
        for a, b in combinations(ids, 2)
        if (pair := _across(a, b, split_of)) is not None
    ]
    shingles = _shingles(list(copies))
    near = [
        (*pair, similarity)
        for i, j in _candidates(shingles, threshold=threshold)
        if len(splits_of[i] | splits_of[j]) > 1
        and (similarity := _jaccard(shingles[i], shingles[j])) >= threshold
        for a in ids_of_text[i]
        for b in ids_of_text[j]
        if (pair := _across(a, b, split_of)) is not None
    ]
    return DuplicateReport(exact=sorted(exact, key=_sort_key), near=sorted(near, key=_sort_key))


def _across(a: str, b: str, split_of: dict[str, str]) -> tuple[str, str, str, str] | None:
    if split_of[a] == split_of[b]:
        return None
    first, second = sorted((a, b), key=lambda post_id: SPLIT_NAMES.index(split_of[post_id]))
    return first, split_of[first], second, split_of[second]


def _sort_key(pair: tuple[Any, ...]) -> tuple[int, int, str, str]:
    return SPLIT_NAMES.index(pair[1]), SPLIT_NAMES.index(pair[3]), pair[0], pair[2]


def _shingles(texts: Sequence[str]) -> list[np.ndarray]:
    """Return the shingles of each text as ascending numbers; the rarest shingle of all has number 0."""
    numbers: dict[str | tuple[int, ...], int] = {}
    words = [
        [
            numbers.setdefault(word, len(numbers))
            for run in _WORD.findall(text) or text.split()
            for word in split_words(run)
        ]
        for text in texts
    ]
    known: dict[tuple[int, ...], int] = {}
    sets = []
    for row in words:
        size = SHINGLE_WORDS if len(row) >= SHINGLE_WORDS else 1
        grams = {tuple(row[i : i + size]) for i in range(len(row) - size + 1)}
        sets.append(
            np.array([known.setdefault(gram, len(known)) for gram in grams], dtype=np.int64)
        )
    counts = np.bincount(np.concatenate(sets), minlength=len(known))
    rank = np.empty(len(known), dtype=np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(known))
    return [np.sort(rank[row]) for row in sets]


def _candidates(shingles: Sequence[np.ndarray], *, threshold: float) -> Iterator[tuple[int, int]]:
    """Yield pairs that share one of their rarest shingles, as every pair above the threshold does.

    Sets x and y with a Jaccard similarity of at least t share at least ceil(t |x|) shingles. Their
    prefixes, the first |x| - ceil(t |x|) + 1 of x and likewise of y in a common order, therefore share
    at least one.
    """
    # The 1e-9 absorbs rounding: 0.55 * 100 is 55.00000000000001.
    prefix_rows = [row[: len(row) - math.ceil(threshold * len(row) - 1e-9) + 1] for row in shingles]
    columns = np.concatenate(prefix_rows)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in prefix_rows])])
    prefixes = sparse.csr_matrix(
        (np.ones(len(columns), dtype=np.int32), columns, starts),
        shape=(len(shingles), int(columns.max()) + 1),
    )
    transposed = prefixes.T.tocsr()
    for start in range(0, len(shingles), _CHUNK):
        shared = (prefixes[start : start + _CHUNK] @ transposed).tocoo()
        for i, j in zip((shared.row + start).tolist(), shared.col.tolist(), strict=True):
            small, large = sorted((len(shingles[i]), len(shingles[j])))
            if i < j and small >= threshold * large - 1e-9:
                yield i, j


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)
