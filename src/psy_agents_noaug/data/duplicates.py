"""Posts whose text is equal, or nearly equal, to that of a post in another split, or quotes it."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.folding import fold
from psy_agents_noaug.data.shingles import mix, shingle_hashes, word_hashes
from psy_agents_noaug.data.splits import SPLIT_NAMES, Splits
from psy_agents_noaug.errors import ConfigError

SHINGLE_WORDS = 3
QUOTED_SHARE = 0.8
MIN_QUOTED_SHINGLES = 20  # a post of 22 words; many write the same short sentence
MAX_PAIRS_IN_JSON = 100
# Of thousands of posts made from one template each is compared with the likeliest few of each split,
# which come from the first so many that have a shingle.
_MAX_PARTNERS = 40
_MAX_SHARERS = 1000
_MAX_PRODUCT = 20_000_000
_PAIRS_AT_ONCE = 20_000

Pair = tuple[str, str, str, str, float]


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """Pairs of posts in different splits, sorted, the earlier split first.

    Every post with a duplicate in another split is in a pair. Of many copies not all pairs are listed.

    Attributes:
        exact: (post_id, split, post_id, split).
        near: (post_id, split, post_id, split, Jaccard similarity).
        quoted: (post_id, split, post_id, split, share of the shorter post that is in the longer one).
    """

    exact: list[tuple[str, str, str, str]]
    near: list[Pair]
    quoted: list[Pair]

    def by_kind(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return the pairs of each kind."""
        return {"exact": list(self.exact), "near": list(self.near), "quoted": list(self.quoted)}

    def post_ids(self, split: str, *kinds: str) -> list[str]:
        """Return the posts of a split with a duplicate (of these kinds, or of any) in another split."""
        by_kind = self.by_kind()
        pairs = [pair for kind in kinds or by_kind for pair in by_kind[kind]]
        ids = {a for a, one, *_ in pairs if one == split}
        return sorted(ids | {b for _, _, b, other, *_ in pairs if other == split})

    def to_json(self) -> dict[str, Any]:
        """Return plain containers, for a JSON file: the first pairs, and numbers of posts by split."""
        by_kind = self.by_kind()
        return {kind: pairs[:MAX_PAIRS_IN_JSON] for kind, pairs in by_kind.items()} | {
            f"n_posts_{kind}": {name: len(self.post_ids(name, kind)) for name in SPLIT_NAMES}
            for kind in by_kind
        }


def find_duplicates_across_splits(
    posts: Sequence[Post], splits: Splits, *, threshold: float = 0.8
) -> DuplicateReport:
    """Find pairs of posts in different splits whose texts are equal, nearly equal, or in one another.

    Exact duplicates are equal after folding case, whitespace and typographic punctuation. Near
    duplicates are the other pairs whose sets of word 3-grams have a Jaccard similarity (Broder 1997)
    of at least `threshold`; texts of fewer than three words are compared by their words. Quoted are
    posts of which four fifths of the 3-grams are in a longer post. Candidates are found by prefix
    filtering (Chaudhuri, Ganti and Kaushik 2006), which misses no pair, but is cut short where
    thousands of posts are alike.

    Args:
        posts: all posts of the splits.
        splits: the split of each post; a corpus that is not divided has no such pairs.
        threshold: lowest similarity of near duplicates, above 0 and at most 1.

    Raises:
        ConfigError: `threshold` is out of range.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"`threshold` must be above 0 and at most 1, but is {threshold} instead.")
    if splits.whole:
        return DuplicateReport([], [], [])
    split_of = splits.split_of()
    copies: dict[str, list[str]] = defaultdict(list)
    for post in posts:
        copies[fold(post.text)].append(post.post_id)
    ids_of_text = list(copies.values())
    exact = {pair for ids in ids_of_text if len(ids) > 1 for pair in _across(ids, ids, split_of)}
    bits = {name: 1 << number for number, name in enumerate(SPLIT_NAMES)}
    masks = np.array([sum({bits[split_of[i]] for i in ids}) for ids in ids_of_text], dtype=np.int64)
    near: dict[tuple[str, str, str, str], float] = {}
    quoted: dict[tuple[str, str, str, str], float] = {}
    for i, j, jaccard, share in _similar(_Index(list(copies), masks), threshold):
        found, value = (near, jaccard) if jaccard >= threshold else (quoted, share)
        for pair in _across(ids_of_text[i], ids_of_text[j], split_of):
            found[pair] = max(value, found.get(pair, 0.0))
    return DuplicateReport(
        exact=sorted(exact, key=_sort_key),
        near=sorted(((*pair, value) for pair, value in near.items()), key=_sort_key),
        quoted=sorted(((*pair, value) for pair, value in quoted.items()), key=_sort_key),
    )


def _across(
    ids: Sequence[str], others: Sequence[str], split_of: dict[str, str]
) -> Iterator[tuple[str, str, str, str]]:
    """Pair each post of two texts with the first one of the other text in each other split."""
    for one_side, other_side in ((ids, others), (others, ids)):
        first: dict[str, str] = {}
        for post_id in other_side:
            first.setdefault(split_of[post_id], post_id)
        for a in one_side:
            for split, b in first.items():
                if split_of[a] != split:
                    one, two = (split_of[a], a), (split, b)
                    if SPLIT_NAMES.index(split) < SPLIT_NAMES.index(split_of[a]):
                        one, two = two, one
                    yield one[1], one[0], two[1], two[0]


def _sort_key(pair: tuple[Any, ...]) -> tuple[int, int, str, str]:
    return SPLIT_NAMES.index(pair[1]), SPLIT_NAMES.index(pair[3]), pair[0], pair[2]


class _Index:
    """The sets of shingles of all texts, the rarest shingle of all first.

    Only shingles that texts of two splits share are kept; the others count in `sizes` alone.

    Args:
        texts: distinct texts, folded.
        masks: a bit per split that a text is in.
    """

    def __init__(self, texts: Sequence[str], masks: np.ndarray) -> None:
        words = word_hashes(
            texts,
            lambda known: mix(np.arange(1, len(known) + 1, dtype=np.uint64)),
            are_folded=True,
        )
        rows = [shingle_hashes(w, SHINGLE_WORDS if len(w) >= SHINGLE_WORDS else 1) for w in words]
        owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        _, number, counts = np.unique(np.concatenate(rows), return_inverse=True, return_counts=True)
        # Most shingles occur once: they only come first in the order, and count.
        is_repeated = counts[number] > 1
        n_unique = np.bincount(owner[~is_repeated], minlength=len(rows))
        rank = np.empty(len(counts), dtype=np.int64)
        rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
        # np.unique hashes integers, which takes ten times as long as to sort them.
        entries = np.sort(owner[is_repeated] * len(counts) + rank[number[is_repeated]])
        entries = entries[np.diff(entries, prepend=-1) != 0]
        owner, column = np.divmod(entries, len(counts))
        n_repeated = np.bincount(owner, minlength=len(rows))
        self.masks = masks
        self.sizes = n_unique + n_repeated
        begins = np.cumsum(n_repeated) - n_repeated
        position = np.arange(len(owner)) + (n_unique - begins)[owner]
        n_splits = sum(
            np.bincount(column[(masks[owner] & bit) > 0], minlength=len(counts)) > 0
            for bit in (1, 2, 4)
        )
        kept = np.asarray(n_splits)[column] > 1
        self._owner, self._position = owner[kept], position[kept]
        _, self._column = np.unique(column[kept], return_inverse=True)
        self.sets = self._matrix(np.ones(len(self._owner), dtype=bool))

    def prefixes(self, threshold: float) -> sparse.csr_matrix:
        """Return the shingles of which one is in every text that has `threshold` of a text's shingles.

        Such a text has at least ceil(t n) of the n shingles, so one of the first n - ceil(t n) + 1.
        """
        # The 1e-9 absorbs rounding: 0.55 * 100 is 55.00000000000001.
        lengths = self.sizes - np.ceil(threshold * self.sizes - 1e-9) + 1
        return self._matrix(self._position < lengths[self._owner])

    def sharers(self) -> sparse.csr_matrix:
        """Return the texts of each shingle, at most the first thousand of each set of splits."""
        group = self._column * 8 + self.masks[self._owner]
        order = np.argsort(group, kind="stable")
        ordered = group[order]
        is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]
        begins = np.maximum.accumulate(np.where(is_first, np.arange(len(ordered)), 0))
        few = np.zeros(len(ordered), dtype=bool)
        few[order] = np.arange(len(ordered)) - begins < _MAX_SHARERS
        return self._matrix(few).T.tocsr()

    def _matrix(self, kept: np.ndarray) -> sparse.csr_matrix:
        n_columns = int(self._column.max()) + 1 if len(self._column) else 1
        ones = np.ones(int(kept.sum()), dtype=np.int32)
        places = (self._owner[kept], self._column[kept])
        return sparse.csr_matrix((ones, places), shape=(len(self.sizes), n_columns))


def _similar(index: _Index, threshold: float) -> Iterator[tuple[int, int, float, float]]:
    """Yield pairs of texts with their Jaccard similarity and the share of the smaller in the larger."""
    pairs = np.unique(_candidates(index, threshold), axis=0)
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        a, b = pairs[start : start + _PAIRS_AT_ONCE].T
        both = np.asarray(index.sets[a].multiply(index.sets[b]).sum(axis=1)).ravel()
        smaller = np.minimum(index.sizes[a], index.sizes[b])
        jaccard = both / (index.sizes[a] + index.sizes[b] - both)
        share = both / smaller
        is_quoted = (share >= QUOTED_SHARE) & (smaller >= MIN_QUOTED_SHINGLES)
        for k in np.flatnonzero((jaccard >= threshold) | is_quoted).tolist():
            yield int(a[k]), int(b[k]), float(jaccard[k]), float(share[k])


def _candidates(index: _Index, threshold: float) -> np.ndarray:
    """Return pairs (i, j), i < j, of texts of two splits that share one of their rarest shingles."""
    prefixes, sharers = index.prefixes(min(threshold, QUOTED_SHARE)), index.sharers()
    cost = prefixes @ np.diff(sharers.indptr)
    chunk_of = np.cumsum(cost) // _MAX_PRODUCT
    edges = np.flatnonzero(np.diff(chunk_of, prepend=-1))
    found = [np.empty((0, 2), dtype=np.int64)]
    for start, end in zip(edges, [*edges[1:], len(cost)], strict=True):
        shared = (prefixes[start:end] @ sharers).tocoo()
        i, j, n_shared = (
            shared.row.astype(np.int64) + start,
            shared.col.astype(np.int64),
            shared.data,
        )
        smaller = np.minimum(index.sizes[i], index.sizes[j])
        larger = np.maximum(index.sizes[i], index.sizes[j])
        same_split = (index.masks[i] == index.masks[j]) & np.isin(index.masks[i], (1, 2, 4))
        is_alike = (smaller >= threshold * larger - 1e-9) | (smaller >= MIN_QUOTED_SHINGLES)
        kept = np.flatnonzero((i != j) & ~same_split & is_alike)
        group = i[kept] * 8 + index.masks[j[kept]]
        kept = kept[np.lexsort((j[kept], -n_shared[kept], group))]
        group = np.sort(group)
        begins = np.searchsorted(group, group)
        kept = kept[np.arange(len(kept)) - begins < _MAX_PARTNERS]
        found.append(np.sort(np.stack([i[kept], j[kept]], axis=1), axis=1))
    return np.concatenate(found)
