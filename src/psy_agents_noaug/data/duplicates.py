"""Posts whose text is equal, or nearly equal, to that of a post in another split, or quotes it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
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

Pair = tuple[str, str, str, str, float]


@dataclass(frozen=True)
class DuplicateReport:
    """Pairs of posts in different splits, sorted, the earlier split first.

    Every post with a duplicate in another split is in a pair. Of many copies not all pairs are listed.

    Attributes:
        exact: (post_id, split, post_id, split).
        near: (post_id, split, post_id, split, Jaccard similarity).
        quoted: (post_id, split, post_id, split, share of the shorter post that is in the longer one).
        n_copies: number of posts whose text another post of any split has too.
    """

    exact: list[tuple[str, str, str, str]]
    near: list[Pair]
    quoted: list[Pair]
    n_copies: int = 0

    def by_kind(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return the pairs of each kind."""
        return {"exact": list(self.exact), "near": list(self.near), "quoted": list(self.quoted)}

    def post_ids(self, split: str, *kinds: str) -> list[str]:
        """Return the posts of a split with a duplicate (of these kinds, or of any) in another split."""
        found = (self._in_pairs[kind][split] for kind in kinds or self._in_pairs)
        return sorted(set().union(*found))

    @cached_property
    def _in_pairs(self) -> dict[str, dict[str, set[str]]]:
        """The posts in pairs of each kind and split."""
        posts = {kind: {name: set[str]() for name in SPLIT_NAMES} for kind in self.by_kind()}
        for kind, pairs in self.by_kind().items():
            for a, one, b, other, *_ in pairs:
                posts[kind][one].add(a)
                posts[kind][other].add(b)
        return posts

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
    if splits.whole or not posts:
        return DuplicateReport([], [], [])
    copies: dict[str, list[int]] = defaultdict(list)
    for number, post in enumerate(posts):
        copies[fold(post.text)].append(number)
    table = _PostTable([post.post_id for post in posts], splits.split_of(), list(copies.values()))
    n_posts = np.diff(table.begins)
    several = np.flatnonzero(n_posts > 1)
    i, j, jaccard, share = _similar(_Index(list(copies), table.masks), threshold)
    is_near = jaccard >= threshold
    is_quoted = ~is_near & (share >= QUOTED_SHARE)
    exact = table.pairs(several, several, np.ones(len(several)))
    near = table.pairs(i[is_near], j[is_near], jaccard[is_near])
    quoted = table.pairs(i[is_quoted], j[is_quoted], share[is_quoted])
    return DuplicateReport(
        exact=list(zip(*exact[:4], strict=True)),
        near=list(zip(*near, strict=True)),
        quoted=list(zip(*quoted, strict=True)),
        n_copies=int(n_posts[several].sum()),
    )


class _PostTable:
    """The posts of each text, with their splits.

    Args:
        ids: of all posts.
        split_of: the split of each post.
        of_texts: the posts of each text, as positions in `ids`.

    Attributes:
        begins: where the posts of each text begin among those of all texts, and their number, `[T + 1]`.
        masks: the splits of each text, a bit for each, `[T]`.
    """

    def __init__(
        self, ids: Sequence[str], split_of: dict[str, str], of_texts: Sequence[Sequence[int]]
    ) -> None:
        self._ids = sorted(ids)
        rank = {post_id: position for position, post_id in enumerate(self._ids)}
        splits = [SPLIT_NAMES.index(split_of[post_id]) for post_id in self._ids]
        self._split = np.asarray(splits, dtype=np.int64)
        self._posts = np.asarray([rank[ids[post]] for posts in of_texts for post in posts])
        self.begins = np.cumsum([0, *map(len, of_texts)])
        text = np.repeat(np.arange(len(of_texts)), np.diff(self.begins))
        # The first post of each text in each split, -1 where there is none; the last assignment stays.
        self._first = np.full((len(of_texts), len(SPLIT_NAMES)), -1)
        self._first[text[::-1], self._split[self._posts[::-1]]] = self._posts[::-1]
        self.masks: np.ndarray = (self._first >= 0) @ (1 << np.arange(len(SPLIT_NAMES)))

    def pairs(
        self, texts: np.ndarray, others: np.ndarray, values: np.ndarray
    ) -> tuple[list[str], list[str], list[str], list[str], list[float]]:
        """Pair each post of a text with the first one of the other text in each other split.

        Args:
            texts: of each pair of texts, `[N]`.
            others: the other text of each pair, `[N]`.
            values: of each pair of texts, `[N]`.

        Returns:
            The post_id, split, post_id, split and value of each pair of posts, sorted.
        """
        keys, found = [], []
        n = len(self._ids)
        for one, other in ((texts, others), (others, texts)):
            counts = np.diff(self.begins)[one]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            post = self._posts[np.repeat(self.begins[one], counts) + within]
            for split in range(len(SPLIT_NAMES)):
                partner = np.repeat(self._first[other, split], counts)
                kept = (partner >= 0) & (self._split[post] != split)
                a, b = post[kept], partner[kept]
                is_later = self._split[a] > split
                a, b = np.where(is_later, b, a), np.where(is_later, a, b)
                pair_of_splits = self._split[a] * len(SPLIT_NAMES) + self._split[b]
                keys.append((pair_of_splits * n + a) * n + b)
                found.append(np.repeat(values, counts)[kept])
        key, position = np.unique(np.concatenate(keys), return_index=True)
        values = np.concatenate(found)[position]
        return (*self._names(key // n % n), *self._names(key % n), values.tolist())

    def _names(self, posts: np.ndarray) -> tuple[list[str], list[str]]:
        ids, splits = posts.tolist(), self._split[posts].tolist()
        return [self._ids[post] for post in ids], [SPLIT_NAMES[split] for split in splits]


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
        shingles = np.concatenate(rows)
        # Most occur once: they only come first in the order, and count. To look the others up is faster
        # than np.unique, which sorts positions too.
        ordered = np.sort(shingles)
        equal = ordered[1:][ordered[1:] == ordered[:-1]]
        repeated = equal[np.diff(equal, prepend=equal[:1] - np.uint64(1)) != 0]
        begins, ends = (np.searchsorted(ordered, repeated, side) for side in ("left", "right"))
        del ordered, equal
        number = np.minimum(np.searchsorted(repeated, shingles), max(len(repeated) - 1, 0))
        is_repeated = (
            repeated[number] == shingles if len(repeated) else np.zeros(len(shingles), dtype=bool)
        )
        n_unique = np.bincount(owner[~is_repeated], minlength=len(rows))
        counts = ends - begins
        rank = np.empty(len(counts), dtype=np.int64)
        rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
        entries = np.sort(owner[is_repeated] * len(counts) + rank[number[is_repeated]])
        entries = entries[np.diff(entries, prepend=-1) != 0]
        owner, column = np.divmod(entries, max(len(counts), 1))
        n_repeated = np.bincount(owner, minlength=len(rows))
        self.masks = masks
        self.sizes = n_unique + n_repeated
        begins = np.cumsum(n_repeated) - n_repeated
        position = np.arange(len(owner)) + (n_unique - begins)[owner]
        n_splits = sum(
            np.bincount(column[(masks[owner] & bit) > 0], minlength=len(counts)) > 0
            for bit in (1, 2, 4)
        )
        is_shared = np.asarray(n_splits) > 1
        kept = is_shared[column]
        self._owner, self._position = owner[kept], position[kept]
        self._column = (np.cumsum(is_shared) - 1)[column[kept]]
        self._n_columns = max(1, int(is_shared.sum()))
        self.sets = self._matrix(np.ones(len(self._owner), dtype=bool))

    def prefixes(self, threshold: float) -> sparse.csr_matrix:
        """Return the shingles of which one is in every text that has `threshold` of a text's shingles.

        Such a text has at least ceil(t n) of the n shingles, so one of the first n - ceil(t n) + 1.
        """
        # The 1e-9 absorbs rounding: 0.55 * 100 is 55.00000000000001.
        lengths = self.sizes - np.ceil(threshold * self.sizes - 1e-9) + 1
        return self._matrix(self._position < lengths[self._owner])

    def sharers(self, is_wanted: np.ndarray) -> sparse.csr_matrix:
        """Return the wanted texts of each shingle, at most the first thousand of each set of splits."""
        shingles, texts = self._few_sharers
        kept = is_wanted[texts]
        return _ones(shingles[kept], texts[kept], (self._n_columns, len(self.sizes)))

    @cached_property
    def _few_sharers(self) -> tuple[np.ndarray, np.ndarray]:
        """Shingles and texts, by shingle, with the first thousand texts of each set of splits."""
        order = np.argsort(self._column, kind="stable")  # a shingle's texts keep their order
        shingles, texts = self._column[order], self._owner[order]
        begins = np.searchsorted(shingles, np.arange(self._n_columns))
        is_few = np.zeros(len(texts), dtype=bool)
        for mask in np.unique(self.masks):
            own = self.masks[texts] == mask
            before = np.concatenate([[0], np.cumsum(own)])
            is_few |= own & (before[1:] - before[begins[shingles]] <= _MAX_SHARERS)
        return shingles[is_few], texts[is_few]

    def _matrix(self, kept: np.ndarray) -> sparse.csr_matrix:
        return _ones(self._owner[kept], self._column[kept], (len(self.sizes), self._n_columns))


def _ones(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Return a matrix of ones at sorted places."""
    begins = np.searchsorted(rows, np.arange(shape[0] + 1))
    return sparse.csr_matrix((np.ones(len(columns), dtype=np.int32), columns, begins), shape=shape)


def _similar(
    index: _Index, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of texts that are alike or of which one is quoted, `[N]` each.

    Returns:
        Both texts, their Jaccard similarity, and the share of the smaller in the larger, which is 0 of
        texts that are too short to be quoted.
    """
    a, b = np.divmod(np.unique(_candidates(index, threshold)), len(index.sizes))
    both = np.empty(len(a), dtype=np.int64)
    of_a = np.zeros(index.sets.shape[1], dtype=np.int32)
    begins = np.flatnonzero(np.diff(a, prepend=-1))
    for begin, end in pairwise([*begins.tolist(), len(a)]):
        shingles = index.sets[a[begin]].indices
        of_a[shingles] = 1
        both[begin:end] = index.sets[b[begin:end]] @ of_a
        of_a[shingles] = 0
    smaller = np.minimum(index.sizes[a], index.sizes[b])
    jaccard = both / (index.sizes[a] + index.sizes[b] - both)
    share = np.where(smaller >= MIN_QUOTED_SHINGLES, both / smaller, 0.0)
    kept = (jaccard >= threshold) | (share >= QUOTED_SHARE)
    return a[kept], b[kept], jaccard[kept], share[kept]


def _candidates(index: _Index, threshold: float) -> np.ndarray:
    """Return pairs i < j of texts of two splits that share one of their rarest shingles, as i T + j."""
    prefixes = index.prefixes(min(threshold, QUOTED_SHARE))
    found = [np.empty(0, dtype=np.int64)]
    for mask in np.unique(index.masks):
        # The others of one split alone are no partners, those of several splits are.
        is_partner = (index.masks != mask) | (mask not in (1, 2, 4))
        sharers = index.sharers(is_partner)
        texts = np.flatnonzero(index.masks == mask)
        own = prefixes[texts]
        chunk_of = np.cumsum(own @ np.diff(sharers.indptr)) // _MAX_PRODUCT
        edges = np.flatnonzero(np.diff(chunk_of, prepend=-1))
        for start, end in pairwise([*edges.tolist(), len(texts)]):
            shared = (own[start:end] @ sharers).tocoo()
            i, j = texts[start + shared.row], shared.col.astype(np.int64)
            smaller = np.minimum(index.sizes[i], index.sizes[j])
            larger = np.maximum(index.sizes[i], index.sizes[j])
            is_alike = (smaller >= threshold * larger - 1e-9) | (smaller >= MIN_QUOTED_SHINGLES)
            kept = np.flatnonzero((i != j) & is_alike)
            found.append(_likeliest(i[kept], j[kept], shared.data[kept], index.masks))
    return np.concatenate(found)


def _likeliest(i: np.ndarray, j: np.ndarray, n_shared: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the pairs with the most shared shingles of each text i and set of splits, as i T + j."""
    n_texts = len(masks)
    # Sorted by text and splits of the partner, then the likeliest, then the first partner.
    rarity = np.max(n_shared, initial=0) - n_shared
    width = int(np.max(rarity, initial=0)) + 1
    key = np.sort(((i * 8 + masks[j]) * width + rarity) * n_texts + j)
    group, j = key // (width * n_texts), key % n_texts
    few = np.arange(len(key)) - np.searchsorted(group, group) < _MAX_PARTNERS
    i, j = group[few] // 8, j[few]
    pairs: np.ndarray = np.minimum(i, j) * n_texts + np.maximum(i, j)
    return pairs
