import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psy_agents_noaug.data.folding import fold, fold_with_offsets

_LETTERS = (
    "a",
    "É",
    "e",
    "\u0301",
    "\u0323",
    "ß",
    "İ",
    "…",
    "’",
    "한",
    "\u1112",
    "\u1161",
    "😔",
    "不",
)
_SPACES = (" ", "\r\n", "\u00a0", "\u200b", "\u200d")
_ENTITIES = ("&amp;", "&amp;#x200B;", "&#39;", "&nbsp;", "&foo;", "&")
PIECES = st.lists(st.sampled_from([*_LETTERS, *_SPACES, *_ENTITIES]), max_size=12).map("".join)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Caf\u00e9", "cafe\u0301"),
        ("한국", unicodedata.normalize("NFD", "한국")),
        ("sad", "s\u200bad\ufeff"),
        ("sleeping", "sleep\u00ading"),
        ("can't & won't", "can&#39;t &amp; won&apos;t"),
        ("a b", "a&nbsp;b"),
        ("a b", "a &amp;#x200B;b"),
        ("<3", "&amp;lt;3"),
    ],
)
def test_what_reads_the_same_folds_to_the_same(one, other):
    assert fold(one) == fold(other)


def test_what_only_looks_like_an_entity_stays():
    assert fold("R&D; me&you; &x") == "r&d; me&you; &x"


@given(PIECES)
def test_both_ways_to_fold_agree(text):
    assert fold_with_offsets(text).text.strip() == fold(text)


@given(PIECES)
def test_each_folded_character_comes_from_a_range_that_folds_to_it(text):
    folded = fold_with_offsets(text)
    assert list(folded.starts) == sorted(folded.starts)
    for character, start, end in zip(folded.text, folded.starts, folded.ends, strict=True):
        assert 0 <= start < end <= len(text)
        if not character.isspace():
            assert character in fold(text[start:end])


def test_a_position_inside_an_entity_or_a_word_cuts_and_one_beside_them_does_not():
    folded = fold_with_offsets("I can&#39;t &amp; so")
    assert [at for at in range(20) if not folded.cuts_word(at)] == [0, 1, 2, 11, 12, 17, 18]
