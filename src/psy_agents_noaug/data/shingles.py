"""Shingles: the runs of n words that a text consists of (Broder 1997), as 64-bit numbers."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from psy_agents_noaug.data.folding import fold
from psy_agents_noaug.utils.words import has_unspaced_script, split_words

_WORD = re.compile(r"\w+(?:'\w+)*")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def word_hashes(
    texts: Sequence[str],
    hash_words: Callable[[list[str]], np.ndarray],
    *,
    are_folded: bool = False,
) -> list[np.ndarray]:
    """Return a uint64 hash of each word of each text, after folding case and punctuation.

    Args:
        texts: of posts; one without words counts by what stands between its spaces.
        hash_words: gives the distinct words their hashes.
        are_folded: whether the texts are folded already.
    """
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    rows = []
    for text in texts:
        folded = text if are_folded else fold(text)
        runs = _WORD.findall(folded) or folded.split()
        if has_unspaced_script(folded):
            runs = [word for run in runs for word in split_words(run)]
        rows.append(np.fromiter(map(numbers.__getitem__, runs), np.int32, len(runs)))
    hashes = hash_words(list(numbers))
    return [hashes[row] for row in rows]


def shingle_hashes(words: np.ndarray, size: int) -> np.ndarray:
    """Return the hashes of the runs of `size` words, in the order of the text; none in a shorter one."""
    if len(words) < size:
        return words[:0]
    mixed = words[: len(words) - size + 1]
    for offset in range(1, size):
        mixed = mix(mixed * _MULTIPLIER + words[offset : len(words) - size + 1 + offset])
    return mixed


def mix(values: np.ndarray) -> np.ndarray:
    """Scramble uint64 numbers one to one (the finalizer of splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
