"""Every sentence of the posts as an example; annotated ones alone are in `test_examples.py`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psy_agents_noaug.data.alignment import Span
from psy_agents_noaug.data.corpus import Annotation, Corpus, Post
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import build_examples
from psy_agents_noaug.data.sentences import sentences, sentences_of_span
from psy_agents_noaug.errors import DataError

CRITERIA = tuple(Criterion(name, name, f"Text of {name}.") for name in ("A.1", "A.2"))
SAD, FINE, TIRED = "I am sad.", "It rains.", "I am always so tired."
POST = Post("p1", f"{SAD} {FINE}\n{TIRED}", "g1")
OTHER = Post("p2", "Thanks.", "g2")
IDS = {SAD: "p1/0-9", FINE: "p1/10-19", TIRED: "p1/20-41"}


def annotation(criterion_id="A.1", status=1, *, row, post_id="p1") -> Annotation:
    return Annotation(post_id, criterion_id, status, None, None, None, None, row)


def build(*annotations: Annotation, spans, posts=(POST, OTHER), unannotated_pairs="negative"):
    return build_examples(
        Corpus(posts, annotations, CRITERIA, {}, ""),
        unit="sentence",
        sentences="all",
        unannotated_pairs=unannotated_pairs,
        spans=spans,
    )


def test_every_sentence_of_every_post_is_paired_once_with_every_criterion():
    examples, report = build(annotation(row=1), spans={1: Span(0, 9)})
    assert [(e.example_id, e.label, e.annotated) for e in examples] == [
        ("p1/0-9/A.1", 1, True),
        ("p1/0-9/A.2", 0, False),
        ("p1/10-19/A.1", 0, False),
        ("p1/10-19/A.2", 0, False),
        ("p1/20-41/A.1", 0, False),
        ("p1/20-41/A.2", 0, False),
        ("p2/0-7/A.1", 0, False),
        ("p2/0-7/A.2", 0, False),
    ]
    assert [e.text for e in examples[::2]] == [SAD, FINE, TIRED, "Thanks."]
    assert {e.group_id for e in examples} == {"g1", "g2"}
    assert all(e.evidence == e.hard_negative_spans == () for e in examples)
    assert report.n_pairs == 8
    assert report.positives == {"A.1": 1, "A.2": 0}
    assert report.unannotated == {"A.1": 3, "A.2": 4}
    assert report.annotations_without_sentence == report.pairs_of_unknown_label == 0


def test_the_place_of_a_sentence_in_its_post_is_kept():
    examples, _ = build(annotation(row=1), spans={1: Span(0, 9)})
    texts = {post.post_id: post.text for post in (POST, OTHER)}
    for example in examples:
        assert example.sentence is not None
        place = slice(example.sentence.start_char, example.sentence.end_char)
        assert texts[example.post_id][place] == example.text


def test_sentences_are_in_the_order_of_the_post_and_not_of_their_ids():
    post = Post("p", "No. " * 30, "p")
    examples, _ = build(annotation(row=1, post_id="p"), spans={1: Span(0, 3)}, posts=(post,))
    assert [e.sentence for e in examples[::2]] == sentences(post.text)


def test_a_row_of_status_0_makes_its_sentence_an_explicit_negative():
    rows = (annotation(row=1), annotation("A.2", 0, row=2))
    examples, report = build(*rows, spans={1: Span(0, 9), 2: Span(10, 19)})
    explicit = [e.example_id for e in examples if e.annotated and e.label == 0]
    assert explicit == ["p1/10-19/A.2"]
    assert report.explicit_negatives == {"A.1": 0, "A.2": 1}


def test_rows_that_differ_in_status_on_one_sentence_are_a_contradiction():
    rows = (annotation(row=1), annotation("A.1", 0, row=2))
    examples, report = build(*rows, spans={1: Span(0, 9), 2: Span(2, 9)})
    assert examples[0].label == 1
    assert report.contradictions == ["p1/0-9/A.1"]


@pytest.mark.parametrize(
    ("span", "labelled"),
    [
        (Span(0, 9), [SAD]),
        (Span(5, 8), [SAD]),  # a part of one sentence
        (Span(5, 12), [SAD]),  # most of it is there
        (Span(0, 15), [SAD, FINE]),  # at least half of the second sentence
        (Span(6, 23), [FINE]),  # a whole sentence and bits of its neighbours
        (Span(6, 13), [SAD, FINE]),  # as much of the one as of the other
        (Span(0, 41), [SAD, FINE, TIRED]),
    ],
)
def test_a_span_labels_the_sentences_that_it_covers_by_half_or_that_hold_half_of_it(span, labelled):
    examples, report = build(annotation(row=1), spans={1: span})
    met = [e.example_id.removesuffix("/A.1") for e in examples if e.label]
    assert met == [IDS[text] for text in labelled]
    assert report.positives["A.1"] == len(labelled)


@given(st.text("a. \n", max_size=40), st.integers(0, 39), st.integers(1, 40))
def test_a_span_that_covers_words_is_about_a_sentence(text, start, length):
    span = Span(start, start + length)
    about = sentences_of_span(span, sentences(text))
    assert about or not text[start : start + length].strip()


def test_where_the_sentence_of_a_met_criterion_is_unknown_the_other_pairs_are_no_negatives():
    rows = (annotation(row=1), annotation(row=2), annotation("A.2", 0, row=3))
    examples, report = build(*rows, spans={1: Span(0, 9)})
    assert [e.example_id for e in examples if e.post_id == "p1"] == [
        "p1/0-9/A.1",  # what row 1 says holds
        "p1/0-9/A.2",
        "p1/10-19/A.2",
        "p1/20-41/A.2",
    ]
    assert [e.example_id for e in examples if e.post_id == "p2"] == ["p2/0-7/A.1", "p2/0-7/A.2"]
    assert report.annotations_without_sentence == 1  # of row 3, status 0, nothing is lost
    assert report.pairs_of_unknown_label == 2
    assert report.n_pairs == 6


@pytest.mark.parametrize(("unannotated_pairs", "n_lost"), [("negative", 0), ("drop", 2)])
def test_status_0_without_a_sentence_is_lost_where_unannotated_pairs_are_dropped(
    unannotated_pairs, n_lost
):
    rows = (annotation(row=1), annotation("A.2", 0, row=2), annotation("A.1", 0, row=3))
    _, report = build(*rows, spans={1: Span(0, 9)}, unannotated_pairs=unannotated_pairs)
    assert report.annotations_without_sentence == report.negatives_without_sentence == n_lost


def test_a_span_of_white_space_is_in_no_sentence():
    rows = (annotation(row=1), annotation("A.2", row=2))
    _, report = build(*rows, spans={1: Span(9, 10), 2: Span(0, 9)})
    assert report.annotations_without_sentence == 1
    assert report.pairs_of_unknown_label == 3


def test_unannotated_pairs_can_be_dropped():
    rows = (annotation(row=1), annotation(row=2))
    examples, report = build(*rows, spans={1: Span(0, 9)}, unannotated_pairs="drop")
    assert [e.example_id for e in examples] == ["p1/0-9/A.1"]
    assert report.pairs_of_unknown_label == 0


def test_a_corpus_without_evidence_is_refused_with_what_to_do():
    with pytest.raises(DataError, match=r"data\.unit=post"):
        build(annotation(row=1), annotation(row=2, status=0), spans={})
