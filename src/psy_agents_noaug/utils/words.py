"""What a word is: in span metrics, in alignment, wherever words are counted.

Words are runs without white space, as in ERASER and SQuAD. Some scripts are written without spaces: a
whole post would be one word. Within a run, their characters are cut further at the word borders of
Unicode (UAX 29): each Chinese character and each hiragana is a word, and so is a run of katakana. UAX 29
leaves Thai, Lao, Khmer and Burmese to dictionaries; without one, each grapheme cluster is a word.
Punctuation belongs to the word before it, and an opening bracket or quote to the word after it.
"""

import re

import regex

WORD_SEGMENTATION = "runs without white space; UAX 29 within scripts written without spaces"

# lb=SA: scripts that need a dictionary to find words (Thai, Lao, Khmer, Myanmar, Tai ...).
# Of Tibetan, only what makes up syllables: UAX 29 finds those, as marks stand between them.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\u0f40-\u0fbc\p{lb=SA}"
_OPENING = r"\p{Ps}\p{Pi}"
_RUN = re.compile(r"\S+")
# A text of these characters (alphabets, punctuation, emoji) holds no such script; `re` tells faster.
_UNUSUAL = re.compile("[^\u0000-\u0dff\u1e00-\u27bf\ufe0f\U0001f000-\U0001faff]")
_UNSPACED_CHARACTER = regex.compile(rf"[{_UNSPACED}]")
_PIECE = regex.compile(
    rf"(?ws)[{_OPENING}]*(?=[{_UNSPACED}]).+?\b[^\s{_UNSPACED}{_OPENING}\p{{L}}\p{{N}}]*"
    rf"|[^\s{_UNSPACED}]+"
)
_BORDER = regex.compile(r"(?w)\b")
_CLUSTER = regex.compile(r"\X")


def has_unspaced_script(text: str) -> bool:
    """Return whether `text` holds characters of a script that is written without spaces."""
    return bool(_UNUSUAL.search(text)) and bool(_UNSPACED_CHARACTER.search(text))


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return the half-open ranges of the words in code points; each visible character is in one."""
    runs = [run.span() for run in _RUN.finditer(text)]
    if not has_unspaced_script(text):
        return runs
    return [
        piece.span()
        for start, end in runs
        for piece in _PIECE.finditer(text, pos=start, endpos=end)
    ]


def split_words(text: str) -> list[str]:
    """Return the words themselves."""
    if not has_unspaced_script(text):
        return text.split()
    return [text[start:end] for start, end in word_spans(text)]


def word_borders(text: str) -> bytearray:
    """Return 1 for each position from 0 to the length of `text` that does not lie inside a word.

    These are the word borders of UAX 29, the ends of the text, both sides of white space and of an
    underscore (Markdown's emphasis), and the border between any two grapheme clusters of scripts that
    are written without spaces.
    """
    borders = bytearray(len(text) + 1)
    borders[0] = borders[-1] = 1
    for border in _BORDER.finditer(text):
        borders[border.start()] = 1
    for position, character in enumerate(text):
        if character == "_" or character.isspace():
            borders[position] = borders[position + 1] = 1
    if has_unspaced_script(text):
        unspaced = {found.start() for found in _UNSPACED_CHARACTER.finditer(text)}
        for cluster in _CLUSTER.finditer(text):
            if cluster.start() in unspaced and cluster.start() - 1 in unspaced:
                borders[cluster.start()] = 1
    return borders
