import pytest

from psy_agents_noaug.data.alignment import align_corpus, given_spans
from psy_agents_noaug.data.corpus import Annotation, Corpus, Post
from psy_agents_noaug.data.corrections import apply_corrections, read_corrections
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.data.examples import build_examples
from psy_agents_noaug.data.labels import BINARY
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.errors import DataError

TEXT = "I sleep badly. I eat well. I sleep badly. 😔 So tired."
FIRST, EATING, SECOND = Span(0, 14), Span(15, 26), Span(27, 41)
HEAD = "post_id,criterion_id,label,start_char,end_char,note"


def annotation(row, criterion_id, status, span=None, **kwargs):
    return Annotation(
        "p1",
        criterion_id,
        status,
        None,
        span.start_char if span else None,
        span.end_char if span else None,
        None,
        row,
        **kwargs,
    )


def corpus(*annotations):
    posts = (Post("p1", TEXT, "p1"), Post("p2", "A quiet day.", "p2"))
    empty = Corpus(posts, (), MAJOR_DEPRESSIVE_EPISODE, {}, "")
    return empty.with_annotations(annotations)


@pytest.fixture
def read(tmp_path):
    def read_rows(*rows, of=None, head=HEAD, **options):
        path = tmp_path / "mended.csv"
        path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
        return read_corrections(path, corpus=of or corpus(), labels=BINARY, **options)

    return read_rows


@pytest.fixture
def corrected(read):
    """Return a function from annotations and rows to (status, span) of each row of p1 and A.4."""

    def apply(annotations, *rows):
        before = corpus(*annotations)
        spans, _ = align_corpus(before, fuzzy_threshold=90.0)
        after, report = apply_corrections(
            before, read(*rows, of=before), spans=spans, file="mended.csv"
        )
        spans |= given_spans(after.annotations)
        found = [(a.status, spans.get(a.row)) for a in after.annotations if a.criterion_id == "A.4"]
        return sorted(found, key=str), report, before, after

    return apply


MET = annotation(1, "A.4", 1, FIRST)
OTHER = annotation(2, "A.4", 1, SECOND)


@pytest.mark.parametrize(
    ("annotations", "rows", "expected"),
    [
        # A label alone replaces what says otherwise, and is added where nothing else says it.
        ([MET, OTHER], ["p1,A.4,0,,,"], [(0, None)]),
        ([MET, OTHER], ["p1,A.4,1,,,"], [(1, FIRST), (1, SECOND)]),
        ([annotation(1, "A.4", 0, FIRST)], ["p1,A.4,1,,,"], [(1, None)]),
        ([], ["p1,A.4,1,,,"], [(1, None)]),
        # A span replaces the evidence that it overlaps, and leaves the rest.
        ([MET, OTHER], ["p1,A.4,1,2,14,"], [(1, Span(2, 14)), (1, SECOND)]),
        ([MET, OTHER], ["p1,A.4,0,0,14,"], [(0, FIRST), (1, SECOND)]),
        ([MET], ["p1,A.4,1,27,41,", "p1,A.4,0,0,14,"], [(0, FIRST), (1, SECOND)]),
        # Known evidence replaces unknown evidence; a span that is none does not.
        ([annotation(1, "A.4", 1)], ["p1,A.4,1,0,14,"], [(1, FIRST)]),
        ([annotation(1, "A.4", 1)], ["p1,A.4,0,15,26,"], [(0, EATING), (1, None)]),
        ([annotation(1, "A.4", 0)], ["p1,A.4,1,,,", "p1,A.4,1,0,14,"], [(1, FIRST)]),
        # Other pairs and notes are of no effect.
        ([MET], ["p1,A.5,0,,,", "p2,A.4,,,,look again"], [(1, FIRST)]),
    ],
)
def test_a_correction_replaces_what_it_contradicts_and_nothing_else(
    corrected, annotations, rows, expected
):
    assert corrected(annotations, *rows)[0] == sorted(expected, key=str)


def test_the_fingerprint_follows_corrections_and_not_notes(corrected):
    _, _, before, after = corrected([MET], "p1,A.4,,,,only a note", "p1,A.4,1,,,")
    assert before.fingerprint == after.fingerprint
    _, report, before, after = corrected([MET], "p1,A.4,0,,,no", "p2,A.1,1,0,7,", "p2,A.2,,,,?")
    assert before.fingerprint != after.fingerprint
    assert report.to_json() == {
        "file": "mended.csv",
        "rows": 3,
        "notes": 1,
        "pairs": 2,
        "annotations_replaced": 1,
        "annotations_added": 2,
        "first_row": 2,
    }


def test_a_row_that_is_left_keeps_the_occurrence_it_had(read):
    rows = [Annotation("p1", "A.4", 1, "I sleep badly.", None, None, None, row) for row in (1, 2)]
    before = corpus(*rows)
    spans, _ = align_corpus(before, fuzzy_threshold=90.0)
    after, _ = apply_corrections(
        before, read("p1,A.4,0,0,14,", of=before), spans=spans, file="mended.csv"
    )
    examples, _ = build_examples(
        after,
        unit="post",
        unannotated_pairs="negative",
        spans=spans | given_spans(after.annotations),
    )
    (pair,) = [e for e in examples if (e.post_id, e.criterion_id) == ("p1", "A.4")]
    assert (pair.evidence, pair.hard_negative_spans) == ((SECOND,), (FIRST,))


def test_a_corrected_sentence_keeps_its_id_and_wording(read):
    named = Annotation("p1", "A.1", 1, "I slept badly.", 0, 14, "s1", 1)
    before = corpus(named)
    after, _ = apply_corrections(
        before,
        read("p1,A.4,1,0,14,", of=before),
        spans={1: FIRST},
        file="mended.csv",
    )
    examples, _ = build_examples(
        after, unit="sentence", sentences="annotated", unannotated_pairs="drop", spans={}
    )
    assert [e.example_id for e in examples] == ["p1/s1/A.1", "p1/s1/A.4"]


def test_all_faults_of_a_file_are_named_at_once(read):
    with pytest.raises(DataError) as error:
        read(
            "p9,A.4,1,,,,",
            "p1,B.7,1,,,,",
            "p1,A.4,2,,,,",
            "p1,A.4,1,0,99,,",
            "p1,A.4,1,3,,,",
            "p1,A.4,1,one,two,,",
            head=f"{HEAD},who",
        )
    assert str(error.value).splitlines() == [
        "The corrections cannot be used:",
        "  - mended.csv: must have the columns post_id, criterion_id, label, start_char, end_char, "
        "note, and no others (it has 'who')",
        "  - mended.csv, row 3, column label: must be 0 or 1",
        "  - mended.csv, row 6, column end_char: must be an integer",
        "  - mended.csv, row 6, column start_char: must be an integer",
        "  - mended.csv, row 1, column post_id: must be in the posts ('p9'); known: 'p1', 'p2'",
        "  - mended.csv, row 2, column criterion_id: must be a criterion or an alias ('B.7'); known: "
        + ", ".join(f"'A.{n}'" for n in range(1, 10)),
        "  - mended.csv, row 4, column end_char: must not be beyond the text (99, but the text has 53 "
        "characters)",
        "  - mended.csv, row 5, column end_char: must come with the other offset",
    ]


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (["p1,A.4,1,,,", "p1,SLEEP_ISSUES,0,,,"], "row 2, column label: must not contradict"),
        (["p1,A.4,1,0,14,", "p1,A.4,0,10,20,"], "row 2, column label: must not contradict"),
        (["p1,A.4,1,0,14,", "p1,A.4,0,,,"], "row 2, column label: must not contradict"),
        (["p1,A.4,,0,14,"], "row 1, column label: must be given with a span"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(read, rows, fault):
    with pytest.raises(DataError, match=fault):
        read(*rows)


def test_rows_that_say_the_same_or_different_things_are_taken(read):
    rows = ["p1,A.4,1,,,", "p1,A.4,1,,,", "p1,A.4,0,15,26,", "p1,A.4,1,0,14,", "p1,A.5,0,,,"]
    assert len(read(*rows)) == 5


def test_a_label_without_a_span_names_no_annotated_sentence(read):
    with pytest.raises(DataError, match="row 1, column label: must come with start_char"):
        read("p1,A.4,1,,,", "p1,A.4,,,,a note needs none", needs_spans=True)


def test_offsets_are_code_points_also_where_the_corpus_counts_otherwise(read):
    (correction,) = read("p1,A.6,1,44,53,")
    assert TEXT[correction.span.start_char : correction.span.end_char] == "So tired."
