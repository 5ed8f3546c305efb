import pytest
from hypothesis import given
from hypothesis import strategies as st

from psy_agents_noaug.data.offsets import (
    CODE_POINTS,
    GivenSpan,
    OffsetStyle,
    from_code_points,
    suggest_style,
    to_code_points,
)
from psy_agents_noaug.data.span import Span

UNITS = ("code_points", "utf16", "utf8_bytes", "lf", "crlf")


@pytest.mark.parametrize(
    ("text", "unit", "start", "end"),
    [
        ("😭 é sad.", "utf16", 5, 8),
        ("😭 é sad.", "utf8_bytes", 8, 11),
        ("a\r\nb\r\nsad.", "lf", 4, 7),
        ("a\nb\nsad.", "crlf", 6, 9),
        ("a\r\nb\nsad.", "crlf", 6, 9),
    ],
)
def test_each_unit_counts_as_by_hand(text, unit, start, end):
    style = OffsetStyle(unit)
    span = to_code_points(text, start, end, style)
    assert span == Span(text.index("sad"), text.index("sad") + 3)
    assert from_code_points(text, span, style) == (start, end)
    assert to_code_points(text, start, end - 1, OffsetStyle(unit, inclusive_ends=True)) == span


def test_an_offset_inside_a_character_or_beyond_the_text_is_none():
    assert to_code_points("😭 sad", 1, 3, OffsetStyle("utf16")) is None
    assert to_code_points("a😭", 0, 2, OffsetStyle("utf8_bytes")) is None
    assert to_code_points("sad", 0, 4, CODE_POINTS) is None
    assert to_code_points("sad", 0, 3, OffsetStyle(inclusive_ends=True)) is None
    assert to_code_points("sad", 0, 4, OffsetStyle("utf16")) is None


@given(
    text=st.text(st.sampled_from("aé😭 不b"), min_size=1, max_size=20),
    unit=st.sampled_from(UNITS),
    inclusive=st.booleans(),
    data=st.data(),
)
def test_to_and_from_code_points_are_inverse(text, unit, inclusive, data):
    start = data.draw(st.integers(0, len(text) - 1))
    span = Span(start, data.draw(st.integers(start + 1, len(text))))
    style = OffsetStyle(unit, inclusive)
    assert to_code_points(text, *from_code_points(text, span, style), style) == span


TEXTS = [
    f"{'😭' * (n + 1)} My day was {'so ' * n}fine.\r\nI lie awake until five. Nothing helps."
    for n in range(6)
]


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit != "code_points"][:3])
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("has_text", [False, True])
def test_the_style_that_mends_the_spans_is_suggested(unit, inclusive, has_text):
    style, words = OffsetStyle(unit, inclusive), "I lie awake"
    given = [
        GivenSpan(
            text,
            *from_code_points(text, Span(text.index(words), text.index(words) + 11), style),
            words if has_text else None,
        )
        for text in TEXTS
    ]
    assert suggest_style(given, current=CODE_POINTS) == (style, 6)
    assert suggest_style(given[:2] * 2, current=style) != (style, 4)


def test_a_style_is_named_by_the_settings_that_must_change():
    both = OffsetStyle("utf16", inclusive_ends=True)
    assert both.settings(current=CODE_POINTS) == "data.offset_unit=utf16 data.inclusive_ends=true"
    assert OffsetStyle("utf16").settings(current=both) == "data.inclusive_ends=false"


def test_nothing_is_suggested_that_mends_half_or_less():
    given = [GivenSpan("retired", 2, 7, None), GivenSpan("retired", 0, 6, None)]
    assert suggest_style(given, current=CODE_POINTS) is None  # inclusive ends mend one of them
