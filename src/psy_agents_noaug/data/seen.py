"""What a checkpoint remembers of its posts, to find them again in another corpus, also edited or quoted.

The runs of five words (shingles, Broder 1997) of all posts are in one Bloom filter (Bloom 1970) with one
hash function and eight bits per shingle: up to one in eight of any five words seem to be in it, and it
does not say in which post. Folded texts and authors are there as hashes. All of it is keyed by a secret
that is not in the checkpoint: without it nobody can find out whether a text was seen, nor guess one word
by word.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from scipy import stats

from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.folding import fold
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


class Hashes(Protocol):
    """How words, texts and authors are hashed."""

    def word(self, word: str) -> bytes:
        """Return 8 bytes."""

    def text(self, text: str) -> str:
        """Return the hash of a folded text."""

    def author(self, author: str) -> str:
        """Return the hash of a `group_id`."""


@dataclass(frozen=True)
class KeyedHashes:
    """HMAC-SHA256: without the key nobody can compute them.

    Args:
        key: a secret, 32 bytes.
    """

    key: bytes

    def word(self, word: str) -> bytes:
        return self._mac("word", word)[:8]

    def text(self, text: str) -> str:
        return self._mac("text", text)[:16].hex()

    def author(self, author: str) -> str:
        return self._mac("author", author)[:16].hex()

    def of_key(self) -> str:
        """Return a hash that tells whether another key is the same."""
        return self._mac("key", "")[:16].hex()

    def _mac(self, kind: str, value: str) -> bytes:
        return hmac.digest(self.key, f"{kind}\0{value}".encode(), "sha256")


@dataclass(frozen=True)
class OpenHashes:
    """Those of 0.2.0 and earlier, which anybody can compute.

    Args:
        key: the fingerprint of the corpus, which is in the checkpoint.
    """

    key: str

    def word(self, word: str) -> bytes:
        return hashlib.blake2b(word.encode(), digest_size=8, key=self.key.encode()).digest()

    def text(self, text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def author(self, author: str) -> str:
        return self.word(author).hex()


@dataclass(frozen=True)
class SeenPosts:
    """The posts that training and thresholds have seen.

    Args:
        hashes: how what follows was hashed.
        texts: hashes of the folded texts.
        authors: hashes of the authors, where they are known.
        n_bits: of the filter; 0: there is none.
        bits: of the filter, packed; uint8, [ceil(n_bits / 8)].
    """

    hashes: Hashes
    texts: frozenset[str]
    authors: frozenset[str]
    n_bits: int
    bits: torch.Tensor

    @classmethod
    def of(cls, posts: Sequence[Post], *, hashes: Hashes) -> "SeenPosts":
        """Remember posts."""
        rows = _shingles([post.text for post in posts], hashes)
        n_bits = max(64, BITS_PER_SHINGLE * sum(map(len, rows)))
        bits = np.zeros(n_bits, dtype=bool)
        for row in rows:
            bits[row % np.uint64(n_bits)] = True
        return cls(
            hashes,
            frozenset(hashes.text(fold(post.text)) for post in posts),
            frozenset(hashes.author(post.group_id) for post in posts if _has_author(post)),
            n_bits,
            torch.from_numpy(np.packbits(bits)),
        )

    @classmethod
    def from_metadata(cls, values: Mapping[str, Any], *, hashes: Hashes) -> "SeenPosts":
        """Return what `to_metadata` made a mapping of."""
        texts, authors = frozenset(values["texts"]), frozenset(values["authors"])
        return cls(hashes, texts, authors, values["n_bits"], values["bits"])

    def to_metadata(self) -> dict[str, Any]:
        """Return plain values and a tensor, for a checkpoint. The key is not among them."""
        return {
            "texts": sorted(self.texts),
            "authors": sorted(self.authors),
            "n_bits": self.n_bits,
            "bits": self.bits,
        }

    def same_texts(self, posts: Sequence[Post]) -> list[str]:
        """Return the ids of posts whose folded text was seen."""
        return [post.post_id for post in posts if self.hashes.text(fold(post.text)) in self.texts]

    def near_duplicates(self, posts: Sequence[Post]) -> list[str]:
        """Return the ids of posts that were seen with an edit, are quoted in a seen one, or quote one.

        A post needs about 13 words to be found, a quotation 24.
        """
        bits = np.unpackbits(self.bits.numpy(), count=self.n_bits).astype(bool)
        filled = float(bits.mean())
        rows = _shingles([post.text for post in posts], self.hashes)
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
            if _has_author(post) and self.hashes.author(post.group_id) in self.authors
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


def _shingles(texts: Sequence[str], hashes: Hashes) -> list[np.ndarray]:
    def keyed(words: list[str]) -> np.ndarray:
        return np.frombuffer(b"".join(map(hashes.word, words)), dtype="<u8")

    return [shingle_hashes(row, SHINGLE_WORDS) for row in word_hashes(texts, keyed)]


def _has_author(post: Post) -> bool:
    return post.group_id != post.post_id
