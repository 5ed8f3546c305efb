"""What a checkpoint remembers of its posts, to find them again in another corpus with an edit or quoted.

The runs of five words (shingles, Broder 1997) of all posts are in one Bloom filter (Bloom 1970) with one
hash function and eight bits per shingle. Up to one in eight of any five words seem to be in it, and it
does not say in which post. So whoever has a text can find whether most of it was seen; but who guesses a
text word by word, from a vocabulary of thousands, finds hundreds of words that seem to go on. That is
a hindrance, not a secret: only a key that is not in the checkpoint would make it one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.shingles import shingle_hashes, word_hashes

SHINGLE_WORDS = 5
BITS_PER_SHINGLE = 8
# A post is a near duplicate if half of its shingles were seen, or 18 of any 20 in a row: a quotation.
SEEN_SHARE = 0.5
QUOTED_RUN = 20
QUOTED_SEEN = 18
# Shingles of an unrelated post that are there by chance, besides the filter's own errors: set phrases.
_CHANCE = 0.05
_SIGNIFICANCE = 1e-6


@dataclass(frozen=True)
class SeenPosts:
    """The posts that training and thresholds have seen.

    Args:
        key: of the hashes.
        n_bits: of the filter.
        bits: of the filter, packed; uint8, [ceil(n_bits / 8)].
        authors: keyed hashes of the authors, where they are known.
    """

    key: str
    n_bits: int
    bits: torch.Tensor
    authors: frozenset[str]

    @classmethod
    def of(cls, posts: Sequence[Post], *, key: str) -> "SeenPosts":
        """Remember posts.

        Args:
            posts: those that were seen.
            key: makes hashes of this corpus differ from those of others; at most 64 bytes.
        """
        rows = _shingles([post.text for post in posts], key)
        n_bits = max(64, BITS_PER_SHINGLE * sum(map(len, rows)))
        bits = np.zeros(n_bits, dtype=bool)
        for row in rows:
            bits[row % np.uint64(n_bits)] = True
        authors = frozenset(_author(post, key) for post in posts if _has_author(post))
        return cls(key, n_bits, torch.from_numpy(np.packbits(bits)), authors)

    @classmethod
    def from_metadata(cls, values: dict[str, Any]) -> "SeenPosts":
        """Return what `to_metadata` made a mapping of."""
        return cls(values["key"], values["n_bits"], values["bits"], frozenset(values["authors"]))

    def to_metadata(self) -> dict[str, Any]:
        """Return plain values and a tensor, for a checkpoint."""
        return {
            "key": self.key,
            "n_bits": self.n_bits,
            "bits": self.bits,
            "authors": sorted(self.authors),
        }

    def near_duplicates(self, posts: Sequence[Post]) -> list[str]:
        """Return the ids of posts that were seen with an edit, are quoted in a seen one, or quote one.

        A post needs about 13 words to be found, a quotation 24.
        """
        bits = np.unpackbits(self.bits.numpy(), count=self.n_bits).astype(bool)
        filled = float(bits.mean())
        rows = _shingles([post.text for post in posts], self.key)
        return [
            post.post_id
            for post, row in zip(posts, rows, strict=True)
            if _is_seen(bits[row % np.uint64(self.n_bits)], filled)
        ]

    def by_seen_authors(self, posts: Sequence[Post]) -> list[str]:
        """Return the ids of posts whose authors are known and wrote posts that were seen."""
        return [
            post.post_id
            for post in posts
            if _has_author(post) and _author(post, self.key) in self.authors
        ]


def _is_seen(found: np.ndarray, filled: float) -> bool:
    """Judge a post by which of its shingles the filter has.

    Args:
        found: of each shingle, in the order of the text; bool, [n].
        filled: share of the filter's bits that are set.
    """
    n, n_found = len(found), int(found.sum())
    share = (n_found / n - filled) / (1 - filled) if n and filled < 1 else 0.0
    if share >= SEEN_SHARE:
        by_chance = stats.binom.sf(n_found - 1, n, min(1.0, filled + _CHANCE))
        if by_chance < _SIGNIFICANCE:
            return True
    sums = np.concatenate([[0], np.cumsum(found)])
    return bool((sums[QUOTED_RUN:] - sums[:-QUOTED_RUN] >= QUOTED_SEEN).any())


def _shingles(texts: Sequence[str], key: str) -> list[np.ndarray]:
    def keyed(words: list[str]) -> np.ndarray:
        hashes = (
            hashlib.blake2b(word.encode(), digest_size=8, key=key.encode()).digest()
            for word in words
        )
        return np.frombuffer(b"".join(hashes), dtype="<u8")

    return [shingle_hashes(row, SHINGLE_WORDS) for row in word_hashes(texts, keyed)]


def _has_author(post: Post) -> bool:
    return post.group_id != post.post_id


def _author(post: Post, key: str) -> str:
    return hashlib.blake2b(post.group_id.encode(), digest_size=8, key=key.encode()).hexdigest()
