import random

import pytest

from psy_agents_noaug.data.alignment import Span
from psy_agents_noaug.data.corpus import Annotation, Corpus, Post
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import build_examples
from psy_agents_noaug.errors import DataError

CANARY = "CANARY"
CRITERIA = tuple(Criterion(name, name, f"Text of {name}.") for name in ("A.1", "A.2"))
POSTS = (Post("p1", "one two three", "g1"), Post("p2", "four five", "p2"))


def annotation(
    post_id="p1",
    criterion_id="A.1",
    status=1,
    *,
    row,
    text=None,
    start=None,
    end=None,
    sentence_id=None,
) -> Annotation:
    return Annotation(post_id, criterion_id, status, text, start, end, sentence_id, row)


def corpus_of(*annotations: Annotation, posts=POSTS) -> Corpus:
    return Corpus(posts, annotations, CRITERIA, {"SPECIAL_CASE": 3}, "")


def build(corpus, *, unit="post", sentences="annotated", unannotated_pairs="negative", spans=None):
    return build_examples(
        corpus,
        unit=unit,
        sentences=sentences,
        unannotated_pairs=unannotated_pairs,
        spans=spans or {},
    )


def test_every_post_is_paired_with_every_criterion_where_unannotated_is_negative():
    examples, report = build(corpus_of(annotation(row=1), annotation("p2", "A.2", 0, row=2)))
    assert [(e.example_id, e.label, e.annotated) for e in examples] == [
        ("p1/A.1", 1, True),
        ("p1/A.2", 0, False),
        ("p2/A.1", 0, False),
        ("p2/A.2", 0, True),
    ]
    assert [e.group_id for e in examples] == ["g1", "g1", "p2", "p2"]
    assert examples[0].text == "one two three"
    assert report.to_json() == {
        "n_posts": 2,
        "n_annotations": 2,
        "n_pairs": 4,
        "positives": {"A.1": 1, "A.2": 0},
        "explicit_negatives": {"A.1": 0, "A.2": 1},
        "unannotated": {"A.1": 1, "A.2": 1},
        "contradictions": [],
        "ignored": {"SPECIAL_CASE": 3},
        "posts_without_annotation": 0,
        "annotations_without_sentence": 0,
        "negatives_without_sentence": 0,
        "pairs_of_unknown_label": 0,
    }


def test_unannotated_pairs_can_be_dropped():
    examples, report = build(corpus_of(annotation(row=1)), unannotated_pairs="drop")
    assert [e.example_id for e in examples] == ["p1/A.1"]
    assert report.unannotated == {"A.1": 0, "A.2": 0}
    assert report.posts_without_annotation == 1


def test_the_label_comes_from_status_and_the_evidence_from_the_spans():
    corpus = corpus_of(annotation(row=1), annotation("p2", "A.1", 0, row=2))
    examples, _ = build(corpus, unannotated_pairs="drop", spans={2: Span(0, 4)})
    met, not_met = examples
    assert (met.label, met.evidence, met.hard_negative_spans) == (1, (), ())
    assert (not_met.label, not_met.evidence) == (0, ())
    assert not_met.hard_negative_spans == (Span(0, 4),)


def test_annotations_of_a_pair_merge():
    corpus = corpus_of(
        annotation(row=1, status=0, text="one"),
        annotation(row=2),
        annotation(row=3),
        annotation(row=4),
    )
    spans = {1: Span(0, 3), 2: Span(8, 13), 3: Span(4, 7), 4: Span(8, 13)}
    examples, report = build(corpus, unannotated_pairs="drop", spans=spans)
    (example,) = examples
    assert example.label == 1
    assert example.evidence == (Span(4, 7), Span(8, 13))
    assert example.hard_negative_spans == (Span(0, 3),)
    assert report.contradictions == []  # a hard negative of other words


@pytest.mark.parametrize(
    ("rows", "is_contradiction"),
    [
        (({"text": "one"}, {"status": 0}), True),
        (({"text": "one"}, {"status": 0, "text": "one"}), True),
        (({"text": "one"}, {"status": 0, "text": "two"}), False),
        (({}, {"status": 0, "text": "two"}), False),
        (({}, {"status": 0, "text": "lost"}), False),
    ],
)
def test_rows_contradict_each_other_that_differ_on_the_whole_post_or_on_the_same_words(
    rows, is_contradiction
):
    rows = [annotation(row=number, **own) for number, own in enumerate(rows, start=1)]
    places = {"one": Span(0, 3), "two": Span(4, 7)}
    spans = {row.row: places[row.evidence_text] for row in rows if row.evidence_text in places}
    _, report = build(corpus_of(*rows), spans=spans)
    assert report.contradictions == (["p1/A.1"] if is_contradiction else [])


def test_the_order_of_rows_changes_nothing():
    rows = [
        annotation(p, c, s, row=i, text=f"{p} {i}", sentence_id=f"s{i}")
        for i, (p, c, s) in enumerate(
            [("p2", "A.2", 0), ("p1", "A.2", 1), ("p1", "A.1", 0), ("p1", "A.1", 1)], start=1
        )
    ]
    shuffled = random.Random(0).sample(rows, len(rows))
    spans = {row.row: Span(0, row.row) for row in rows}
    for kind in ({}, {"unit": "sentence"}, {"unit": "sentence", "sentences": "all"}):
        a = build(corpus_of(*rows), **kind, spans=spans)
        assert a == build(corpus_of(*shuffled, posts=POSTS[::-1]), **kind, spans=spans)


def test_sentences_become_examples_of_their_own():
    corpus = corpus_of(
        annotation(row=1, text="one, two", sentence_id="p1_0"),
        annotation(row=2, criterion_id="A.2", status=0, text="one, two", sentence_id="p1_0"),
        annotation(row=3, start=8, end=13, sentence_id="p1_1"),
    )
    examples, report = build(corpus, unit="sentence", spans={1: Span(0, 3)})
    assert [(e.example_id, e.text, e.label, e.annotated) for e in examples] == [
        ("p1/p1_0/A.1", "one, two", 1, True),
        ("p1/p1_0/A.2", "one, two", 0, True),
        ("p1/p1_1/A.1", "three", 1, True),
        ("p1/p1_1/A.2", "three", 0, False),
    ]
    assert all(e.evidence == () for e in examples)
    assert report.n_pairs == 4
    assert report.contradictions == []
    dropped, _ = build(corpus, unit="sentence", unannotated_pairs="drop")
    assert [e.example_id for e in dropped] == ["p1/p1_0/A.1", "p1/p1_0/A.2", "p1/p1_1/A.1"]


def test_sentences_without_an_id_are_told_apart_by_content_and_not_named_by_it():
    corpus = corpus_of(
        annotation(row=1, text=CANARY),
        annotation(row=2, text=CANARY, status=0),
        annotation(row=3, text="other"),
    )
    examples, report = build(corpus, unit="sentence", unannotated_pairs="drop")
    assert sorted((e.text, e.label) for e in examples) == [(CANARY, 1), ("other", 1)]
    assert not any(CANARY in e.example_id for e in examples)
    assert len(report.contradictions) == 1


def test_all_rows_that_are_no_sentence_are_listed_in_one_error():
    corpus = corpus_of(
        annotation(row=1),
        annotation(row=2, text=f"{CANARY} a", sentence_id="s"),
        annotation(row=3, text=f"{CANARY} b", sentence_id="s"),
        annotation(row=4),
    )
    with pytest.raises(DataError) as caught:
        build(corpus, unit="sentence")
    message = str(caught.value)
    assert "row 1: must have evidence_text or offsets" in message
    assert "row 4: must have evidence_text or offsets" in message
    assert "row 3: must have the same text as the other rows of its sentence ('s')" in message
    assert "row 2" not in message
    assert CANARY not in message


def test_examples_that_would_share_an_id_are_refused():
    corpus = Corpus(
        (Post("a/b", "x", "1"), Post("a", "y", "2")),
        (),
        (Criterion("c", "c", "c"), Criterion("b/c", "b", "b")),
        {},
        "",
    )
    with pytest.raises(DataError, match="'a/b/c'"):
        build(corpus)
