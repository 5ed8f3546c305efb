"""Annotators who contradict each other."""

import pytest

from psy_agents_noaug.data.alignment import align_corpus, given_spans
from psy_agents_noaug.data.annotators import check_annotators, conflicts
from psy_agents_noaug.data.corpus import Annotation, Corpus, Post
from psy_agents_noaug.errors import DataError


def row(annotator, status, number, *, start=None, sentence=None, criterion="A.1", post="p1"):
    end = None if start is None else start + 5
    return Annotation(post, criterion, status, None, start, end, sentence, number, annotator)


@pytest.mark.parametrize(
    "rows",
    [
        [row("a", 1, 1), row("b", 1, 2)],
        [row("a", 1, 1), row("a", 0, 2)],
        [row(None, 1, 1), row(None, 0, 2)],
        [row("a", 1, 1), row(None, 0, 2)],
        [row("a", 1, 1), row("b", 0, 2, criterion="A.2")],
        [row("a", 1, 1), row("b", 0, 2, post="p2")],
        [row("a", 1, 1, start=3), row("b", 1, 2, start=9)],
        # A hard negative of one, elsewhere in the post.
        [row("a", 1, 1, start=3), row("b", 0, 2, start=9)],
        [row("a", 1, 1, sentence="s1"), row("b", 0, 2, sentence="s2")],
        # One who says both counts as met, whoever comes first.
        [row("b", 1, 1, start=3), row("a", 1, 2, start=3), row("a", 0, 3, start=3)],
    ],
)
def test_annotators_who_do_not_contradict_each_other_pass(rows):
    assert conflicts(rows, spans=given_spans(rows)) == []
    check_annotators(rows, spans=given_spans(rows))


@pytest.mark.parametrize(
    "rows",
    [
        [row("a", 1, 1), row("b", 0, 2)],
        [row("a", 0, 1), row("b", 1, 2, start=3)],
        [row("a", 1, 1, start=3), row("b", 0, 2, start=3)],
        [row("a", 1, 1, sentence="s1"), row("b", 0, 2, sentence="s1")],
        [row("a", 2, 1), row("b", 1, 2)],
    ],
)
def test_annotators_who_contradict_each_other_are_told_with_their_rows(rows):
    (found,) = conflicts(rows, spans=given_spans(rows))
    assert (found.post_id, found.criterion_id, found.rows) == ("p1", "A.1", (1, 2))
    with pytest.raises(DataError, match=r"rows 1, 2: must agree \(post 'p1', criterion A\.1\)"):
        check_annotators(rows, spans=given_spans(rows))


@pytest.mark.parametrize(
    ("post", "text", "where"),
    [
        ("I cry. A bus.", "I cry ", (None, None, None)),
        ("I cry. A bus.", "i  cry", (None, None, None)),
        ("I cry. A bus.", "I cry", (None, None, "s1")),
        ("I cry. A bus.", None, (0, 5, None)),
        # Not found in the post.
        ("A train.", "I cry ", (None, None, None)),
        ("A train.", "I cry", (None, None, "s1")),
    ],
)
def test_the_same_words_are_the_same_however_rows_name_them(post, text, where):
    rows = (
        Annotation("p1", "A.1", 1, "I cry", None, None, None, 1, "a"),
        Annotation("p1", "A.1", 0, text, *where, 2, "b"),
    )
    corpus = Corpus((Post("p1", post, "p1"),), rows, (), {}, "")
    spans, _ = align_corpus(corpus, fuzzy_threshold=90)
    (found,) = conflicts(rows, spans=spans)
    assert found.rows == (1, 2)
