from hypothesis import given
from hypothesis import strategies as st

from psy_agents_noaug.data.sentences import sentences


def texts(text: str) -> list[str]:
    return [text[span.start_char : span.end_char] for span in sentences(text)]


def test_sentences_end_at_punctuation_before_space_and_at_line_ends():
    assert texts('I slept. "Really?" he said!  Yes…\r\nNo stop here\n\n(Or here.) 3.5 mg') == [
        "I slept.",
        '"Really?"',
        "he said!",
        "Yes…",
        "No stop here",
        "(Or here.)",
        "3.5 mg",
    ]


def test_chinese_and_japanese_sentences_end_without_a_space():
    assert texts("今天下雨了。我“睡不着。”真的吗？！是") == [
        "今天下雨了。",
        "我“睡不着。”",
        "真的吗？！",
        "是",
    ]


def test_a_text_of_white_space_has_no_sentence():
    assert texts(" \n\t ") == []


@given(st.text(st.sampled_from("ab.!?…'\")🐕。？」不\u0301 \r\n\t"), max_size=60))
def test_every_visible_character_is_in_exactly_one_sentence(text):
    covered = [0] * len(text)
    for span in sentences(text):
        for position in range(span.start_char, span.end_char):
            covered[position] += 1
        assert not text[span.start_char].isspace()
        assert not text[span.end_char - 1].isspace()
    for character, count in zip(text, covered, strict=True):
        assert count == 1 if not character.isspace() else count <= 1
