import pytest
from hypothesis import given
from hypothesis import strategies as st

from psy_agents_noaug.utils.words import has_unspaced_script, split_words, word_borders, word_spans


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I can't sleep. (Not) at-all!\n", ["I", "can't", "sleep.", "(Not)", "at-all!"]),
        ("So 😔, d’accord… 한국어 단어", ["So", "😔,", "d’accord…", "한국어", "단어"]),
        ("我睡不着，不知道。", ["我", "睡", "不", "着，", "不", "知", "道。"]),
        ("私は「眠れない」。ストレス", ["私", "は", "「眠", "れ", "な", "い」。", "ストレス"]),
        ("นอนไม่หลับ", ["น", "อ", "น", "ไ", "ม่", "ห", "ลั", "บ"]),
        ("I feel 很累，so sad：3.5kg", ["I", "feel", "很", "累，", "so", "sad：3.5kg"]),
        ("ཀ་ཁམས་ག།", ["ཀ་", "ཁམས་", "ག།"]),
        (" \n", []),
    ],
    ids=["English", "spaced", "Chinese", "Japanese", "Thai", "mixed", "Tibetan", "nothing"],
)
def test_words_are_runs_without_space_and_cut_further_where_a_script_has_no_spaces(text, words):
    assert split_words(text) == words


@given(st.text(st.sampled_from("ab.'（「不着ストーนมั่\u0301\u200b😔_ \n3"), max_size=40))
def test_every_visible_character_is_in_exactly_one_word(text):
    covered = [position for start, end in word_spans(text) for position in range(start, end)]
    assert covered == [at for at, character in enumerate(text) if not character.isspace()]


@given(st.text(st.sampled_from("abé.'’—😔한 \n\t3_"), max_size=40))
def test_words_of_scripts_with_spaces_are_those_of_white_space(text):
    assert split_words(text) == text.split()
    assert not has_unspaced_script(text)


def borders(text: str) -> str:
    """The text with a bar at every word border between two characters."""
    cuts = word_borders(text)
    return text[:1] + "".join(
        f"|{c}" if cut else c for c, cut in zip(text[1:], cuts[1:], strict=False)
    )


@pytest.mark.parametrize(
    "text",
    [
        "can't",
        "so| |sad",
        "self|-|harm",
        "_|so|_",
        "3.5",
        "cafe\u0301",
        "睡|不|着",
        "ス|ト|レ|ス",
        "ม่|ห|ลั",
    ],
)
def test_a_border_cuts_no_word(text):
    assert borders(text.replace("|", "")) == text


def test_the_ends_of_a_text_are_borders():
    assert list(word_borders("ab")) == [1, 0, 1]
    assert list(word_borders("")) == [1]
