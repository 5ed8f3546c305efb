from psy_agents_noaug.data.corpus import Annotation
from psy_agents_noaug.data.repeats import choose_occurrences, first_sentence_number
from psy_agents_noaug.data.span import Span

TEXT = "I cry. We ate. I cry. It rained. It was late. I cry."
SPANS = [Span(0, 6), Span(15, 21), Span(46, 52)]


def rows(*sentence_ids: str | None) -> list[Annotation]:
    return [
        Annotation("p_1", "A.1", 1, "I cry.", None, None, sentence_id, row)
        for row, sentence_id in enumerate(sentence_ids, start=1)
    ]


def chosen(*sentence_ids: str | None, first: int = 0) -> tuple[list[int], bool]:
    """The places of the chosen occurrences by row, and whether they are clear."""
    found, is_clear = choose_occurrences(rows(*sentence_ids), SPANS, text=TEXT, first_number=first)
    return [SPANS.index(found[row]) for row in sorted(found)], is_clear


def test_the_number_of_the_sentence_decides():
    assert chosen("p_1_2") == ([1], True)
    assert chosen("p_1_5", "p_1_0") == ([2, 0], True)
    assert chosen("3", first=1) == ([1], True)


def test_the_nearest_sentence_is_meant_where_sentences_are_counted_differently():
    assert chosen("p_1_4") == ([2], True)
    assert chosen("p_1_1") == ([0], False)  # as near to the first as to the second


def test_as_many_copies_as_occurrences_take_one_each_in_order():
    assert chosen(None, None, None) == ([0, 1, 2], True)
    assert chosen("x", "y", "z") == ([0, 1, 2], True)
    assert chosen("p_1_6", "p_1_3", "p_1_1") == ([2, 1, 0], True)


def test_fewer_copies_take_the_first_ones_and_are_in_doubt():
    assert chosen(None) == ([0], False)
    assert chosen(None, "other") == ([0, 1], False)


def test_rows_of_one_sentence_mean_one_occurrence():
    assert chosen("p_1_2", "p_1_2") == ([1, 1], True)


def test_more_copies_than_occurrences_leave_no_doubt():
    assert chosen(None, None, None, None) == ([0, 1, 2, 2], True)


def test_a_number_that_no_sentence_of_the_post_has_decides_nothing():
    assert chosen("p_1_4711") == ([0], False)


def test_sentences_are_numbered_as_what_occurs_once_says():
    def found(number: int) -> list:
        row = Annotation("p_1", "A.1", 1, "We ate.", None, None, f"p_1_{number}", 1)
        return [([row], [Span(7, 14)])]

    assert first_sentence_number(found(2), {"p_1": TEXT}) == 1
    assert first_sentence_number(found(1), {"p_1": TEXT}) == 0
    assert first_sentence_number([(rows("p_1_1"), SPANS)], {"p_1": TEXT}) == 0
