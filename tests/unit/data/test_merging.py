"""Labels of several annotators, merged by `data.merge`."""

import pytest

from psy_agents_noaug.data.corpus import Annotation, Corpus, Post
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import build_examples
from psy_agents_noaug.data.merging import MergeRule, Panel, Vote
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.errors import DataError

CRITERIA = tuple(Criterion(name, name, name) for name in ("A.1", "A.2"))
POSTS = (Post("p1", "I cry. We ate soup.", "p1"), Post("p2", "A bus.", "p2"))


def row(number, annotator, status=1, *, criterion="A.1", post="p1", span=None):
    start, end = span or (None, None)
    return Annotation(post, criterion, status, None, start, end, None, number, annotator)


def built(*rows, merge, unannotated="negative", unit="post"):
    panel = Panel(rows, MergeRule.of(merge), unannotated_pairs=unannotated)
    spans = {r.row: Span(r.start_char, r.end_char) for r in rows if r.start_char is not None}
    examples, report = build_examples(
        Corpus(POSTS, rows, CRITERIA, {}, ""),
        unit=unit,
        unannotated_pairs=unannotated,
        spans=spans,
        panel=panel,
    )
    return {example.example_id: example for example in examples}, report


def votes_of(*labels):
    return tuple(Vote(f"a{number}", label) for number, label in enumerate(labels))


@pytest.mark.parametrize(
    ("labels", "any_", "majority", "unanimous", "first"),
    [
        ((1, 1, 1), 1, 1, 1, 1),
        ((1, 1, 0), 1, 1, 0, 1),
        ((0, 0, 1), 1, 0, 0, 0),
        ((1, 0), 1, 0, 0, 1),  # a tie
        ((0, 0), 0, 0, 0, 0),
        ((1,), 1, 1, 1, 1),
    ],
)
def test_the_label_follows_from_the_votes(labels, any_, majority, unanimous, first):
    votes = votes_of(*labels)
    rules = ("any", "majority", "unanimous", "annotator:a0")
    found = [MergeRule.of(rule).label(votes) for rule in rules]
    assert found == [any_, majority, unanimous, first]
    assert MergeRule.of("annotator=a9").label(votes) is None


def test_each_vote_is_held_against_the_merged_label_of_the_others():
    votes = votes_of(1, 1, 0)
    majority = [
        (v.annotator_id, v.label, ref.label)
        for v, ref in MergeRule.of("majority").references(votes)
    ]
    assert majority == [("a0", 1, 0), ("a1", 1, 0), ("a2", 0, 1)]
    of_one = [
        (v.annotator_id, ref.label) for v, ref in MergeRule.of("annotator:a0").references(votes)
    ]
    assert of_one == [("a1", 1), ("a2", 1)]
    assert list(MergeRule.of("any").references(votes_of(1))) == []


def test_an_annotator_with_a_row_of_a_post_says_not_met_of_its_other_criteria():
    examples, _ = built(row(1, "a"), row(2, "b", criterion="A.2"), merge="unanimous")
    assert [(v.annotator_id, v.label) for v in examples["p1/A.1"].votes] == [("a", 1), ("b", 0)]
    assert (examples["p1/A.1"].label, examples["p1/A.1"].annotated) == (0, True)
    assert examples["p1/A.1"].soft_label == 0.5
    # Nobody has a row of the other post.
    assert examples["p2/A.1"].votes == ()


def test_where_unannotated_pairs_are_dropped_an_annotator_has_seen_what_it_has_rows_of():
    rows = row(1, "a"), row(2, "b", criterion="A.2"), row(3, "b", 0, post="p2")
    examples, _ = built(*rows, merge="unanimous", unannotated="drop")
    assert {key: [v.annotator_id for v in e.votes] for key, e in examples.items()} == {
        "p1/A.1": ["a"],
        "p1/A.2": ["b"],
        "p2/A.1": ["b"],
    }


def test_the_evidence_is_that_of_the_annotators_who_agree_with_the_label():
    rows = (
        row(1, "a", span=(0, 5)),
        row(2, "b", span=(2, 5)),
        row(3, "b", 0, span=(0, 5)),
        row(4, "c", 0, span=(7, 10)),
    )
    met, _ = built(*rows, merge="majority")
    example = met["p1/A.1"]
    assert (example.label, example.evidence) == (1, (Span(0, 5), Span(2, 5)))
    # b's hard negative is evidence of a, and c is overruled.
    assert example.hard_negative_spans == ()
    assert [vote.evidence for vote in example.votes] == [(Span(0, 5),), (Span(2, 5),), ()]
    unmet, _ = built(*rows, merge="unanimous")
    assert (unmet["p1/A.1"].label, unmet["p1/A.1"].evidence) == (0, ())
    assert unmet["p1/A.1"].hard_negative_spans == (Span(7, 10),)


def test_the_evidence_of_a_chosen_annotator_is_its_own():
    rows = (
        row(1, "gold", span=(0, 5)),
        row(2, "a", span=(0, 9)),  # which gold has corrected
        row(3, "gold", 0, criterion="A.2", span=(7, 9)),
        row(4, "a", 0, criterion="A.2", span=(0, 5)),
    )
    examples, _ = built(*rows, merge="annotator:gold")
    assert examples["p1/A.1"].evidence == (Span(0, 5),)
    assert examples["p1/A.2"].hard_negative_spans == (Span(7, 9),)
    assert [vote.annotator_id for vote in examples["p1/A.1"].votes] == ["a", "gold"]


@pytest.mark.parametrize("name", ["a=b", "a:b", "any"])
def test_an_annotator_may_have_any_name(name):
    for sign in ":=":
        assert MergeRule.of(f"annotator{sign}{name}").annotator_id == name


def test_pairs_that_the_chosen_annotator_has_not_seen_are_left_out_and_counted():
    rows = row(1, "a"), row(2, "b", post="p2")
    examples, report = built(*rows, merge="annotator:a")
    assert list(examples) == ["p1/A.1", "p1/A.2"]
    assert report.pairs_not_seen == 2


def test_sentences_are_voted_on_one_by_one():
    rows = row(1, "a", span=(0, 6)), row(2, "b", span=(7, 19))
    examples, _ = built(*rows, merge="majority", unit="sentence")
    first = examples["p1/0-6/A.1"]
    assert [(v.annotator_id, v.label) for v in first.votes] == [("a", 1), ("b", 0)]
    assert first.label == 0


def test_a_label_without_a_place_says_nothing_of_single_sentences():
    rows = row(1, "a", span=(0, 6)), row(2, "b")
    examples, _ = built(*rows, merge="majority", unit="sentence")
    assert [(v.annotator_id, v.label) for v in examples["p1/0-6/A.1"].votes] == [("a", 1)]
    assert "p1/7-19/A.1" not in examples  # b may mean it


def test_a_label_without_a_place_of_one_whose_vote_does_not_count_leaves_nothing_out():
    rows = row(1, "gold", span=(0, 6)), row(2, "a")
    alone, _ = built(rows[0], merge="annotator:gold", unit="sentence")
    examples, report = built(*rows, merge="annotator:gold", unit="sentence")
    assert {key: e.label for key, e in examples.items()} == {
        key: e.label for key, e in alone.items()
    }
    assert report.pairs_of_unknown_label == 0
    rows = row(1, "gold"), row(2, "a", span=(0, 6))
    _, report = built(*rows, merge="annotator:gold", unit="sentence")
    assert report.pairs_of_unknown_label == 1


def test_what_the_named_annotator_has_not_seen_is_no_negative_where_another_may_mean_it():
    rows = row(1, "a"), row(2, "gold", post="p2", span=(0, 6))
    examples, report = built(*rows, merge="annotator:gold", unit="sentence")
    assert {example.post_id for example in examples.values()} == {"p2"}
    assert (report.pairs_not_seen, report.pairs_of_unknown_label) == (4, 0)


def test_votes_on_sentences_are_partial_where_a_met_label_has_no_place():
    rows = row(1, "a", span=(0, 6)), row(2, "b"), row(3, "b", criterion="A.2", span=(0, 6))
    examples, _ = built(*rows, merge="majority", unit="sentence")
    partial = {key for key, example in examples.items() if example.votes_are_partial}
    assert partial == {"p1/0-6/A.1"}
    of_posts, _ = built(*rows, merge="majority")
    assert not any(example.votes_are_partial for example in of_posts.values())


@pytest.mark.parametrize(
    ("rows", "merge", "message"),
    [
        ([row(1, None)], "any", "needs the column `annotator_id`"),
        ([row(1, "a"), row(2, None)], "any", "annotations, row 2: must have an annotator_id"),
        ([row(1, "a"), row(2, "b")], "annotator:c", "which has 'a', 'b'"),
    ],
)
def test_annotations_that_cannot_be_merged_are_refused(rows, merge, message):
    with pytest.raises(DataError, match=message):
        Panel(rows, MergeRule.of(merge), unannotated_pairs="drop")


def test_the_evidence_of_the_others_is_that_of_those_who_agree_with_their_label():
    votes = (
        Vote("a", 1, (Span(0, 5),)),
        Vote("b", 1, (Span(2, 5),)),
        Vote("c", 1, (Span(7, 10),)),
        Vote("d", 0),
    )
    found = {
        vote.annotator_id: others for vote, others in MergeRule.of("majority").references(votes)
    }
    assert found["a"].evidence == (Span(2, 5), Span(7, 10))
    assert found["d"].evidence == (Span(0, 5), Span(2, 5), Span(7, 10))
    of_one = dict(MergeRule.of("annotator:b").references(votes))
    assert {others.evidence for others in of_one.values()} == {(Span(2, 5),)}
