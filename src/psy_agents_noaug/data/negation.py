"""Negation in English: whether two similar texts say "not" equally often.

One letter makes "now" of "not", so that similarity alone would take the opposite for a match.
"""

import re
from collections import Counter

_NEGATING = (
    "no not never none nobody nothing nowhere neither nor without hardly barely scarcely nope"
)
_CONTRACTED = (
    "cannot aint arent cant couldnt didnt doesnt dont hadnt hasnt havent isnt mustnt shouldnt wasnt "
    "werent wont wouldnt"
)
# Words that negate, each with the word as which it is counted; those in n't are counted as not.
NEGATIONS = {word: word for word in _NEGATING.split()} | dict.fromkeys(_CONTRACTED.split(), "not")
# Prefixes and endings that turn a word into its opposite: unhappy, dislike, hopeless.
NEGATING_PREFIXES = ("un", "in", "im", "il", "ir", "dis", "non")
NEGATING_ENDING, AFFIRMING_ENDINGS = "less", ("", "ful")

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def negations_agree(one: str, other: str) -> bool:
    """Return whether two folded texts negate alike.

    They hold the same negation words equally often ("can't", "cannot" and "can not" are one), and no
    word of one text is the opposite, by prefix or ending, of a word of the other.
    """
    words, others = Counter(_WORD.findall(one)), Counter(_WORD.findall(other))
    if _negations(words) != _negations(others):
        return False
    here, there = set(words - others), set(others - words)
    return not (_opposites(here) & there or _opposites(there) & here)


def _negations(words: Counter[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for word, count in words.items():
        if word in NEGATIONS:
            counts[NEGATIONS[word]] += count
        elif word.endswith("n't"):
            counts["not"] += count
    return counts


def _opposites(words: set[str]) -> set[str]:
    """Return the words that negate one of `words` by a prefix or an ending."""
    negated = {prefix + word for word in words for prefix in NEGATING_PREFIXES}
    stems = {
        word.removesuffix(end) for word in words for end in AFFIRMING_ENDINGS if word.endswith(end)
    }
    return negated | {stem + NEGATING_ENDING for stem in stems}
