"""SQuAD's comparison of two answers (Rajpurkar et al. 2016, 2018), as in its official script.

In answers in scripts that are written without spaces, all punctuation of Unicode is removed, and words
are those of `utils.words`. For Chinese this is what MLQA's official script does (Lewis et al. 2020,
`mixed_segmentation` in mlqa_evaluation_v1.py): a Chinese character is a word, and so is what stands
between white space otherwise.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import regex

from psy_agents_noaug.metrics.ratios import f1_score
from psy_agents_noaug.utils.words import has_unspaced_script, split_words

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ALL_PUNCTUATION = regex.compile(r"\p{P}")


def normalize_answer(text: str) -> str:
    """Lower-case, and remove ASCII punctuation, English articles and extra white space."""
    text = text.lower().translate(_PUNCTUATION)
    if has_unspaced_script(text):
        text = _ALL_PUNCTUATION.sub("", text)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """Return 1.0 if the normalised prediction equals a normalised gold answer, else 0.0.

    The empty string means "no answer". It is the gold answer if `golds` is empty, or if all of them
    normalise to nothing.
    """
    return max(float(normalize_answer(prediction) == gold) for gold in _normalized(golds))


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """Return the F1 of two bags of normalised words, the best over `golds`; "" as in `exact_match`."""
    words = split_words(normalize_answer(prediction))
    return max(_f1(words, split_words(gold)) for gold in _normalized(golds))


def _normalized(golds: Sequence[str]) -> list[str]:
    return [gold for gold in map(normalize_answer, golds) if gold] or [""]


def _f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    common = (Counter(predicted) & Counter(gold)).total()
    return float(f1_score(common, len(predicted), len(gold)))
