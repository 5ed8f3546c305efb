import csv
import json
import random
import sys
from datetime import datetime
from types import SimpleNamespace

import datasets
import pandas as pd
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st

from psy_agents_noaug.data.corpus import Post, load_corpus, load_hub_corpus
from psy_agents_noaug.data.offsets import CODE_POINTS, OffsetStyle
from psy_agents_noaug.data.tables import read_hub, read_table
from psy_agents_noaug.errors import ConfigError, DataError

CANARY = "CANARY private words"
POSTS = [
    {"post_id": "p1", "text": f"{CANARY} I cannot sleep.", "group_id": "u1"},
    {"post_id": "p2", "text": 'first line\r\nsecond "quoted" line 😔', "group_id": None},
    {"post_id": "007", "text": "NA", "group_id": "u1"},
]
ANNOTATIONS = [
    {"post_id": "p1", "criterion_id": "SLEEP_ISSUES", "status": 1, "evidence_text": "sleep."},
    {"post_id": "p1", "criterion_id": "A.6", "status": 0, "start_char": 0, "end_char": 6},
    {"post_id": "p2", "criterion_id": "special_case", "status": 1},
    {"post_id": "007", "criterion_id": "fatigue", "status": 0, "sentence_id": "s1"},
]
CRITERIA = [
    {"criterion_id": "B.10", "name": "Ten", "text": "Ten.", "aliases": "TEN|tenth"},
    {"criterion_id": "B.2", "name": "Two", "text": "Two.", "aliases": None},
]


def write(path, records):
    names = list(dict.fromkeys(name for record in records for name in record))
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(records)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(record) + "\n" for record in records]
        path.write_text("".join(lines), "utf-8")
    else:
        pd.DataFrame(records, columns=names).to_parquet(path)
    return path


def load(
    folder,
    *,
    posts=POSTS,
    annotations=ANNOTATIONS,
    criteria=None,
    suffix=".csv",
    columns=None,
    ignored_criteria=("SPECIAL_CASE",),
    offsets=CODE_POINTS,
):
    return load_corpus(
        posts=write(folder / f"posts{suffix}", posts),
        annotations=write(folder / f"annotations{suffix}", annotations),
        criteria=None if criteria is None else write(folder / f"criteria{suffix}", criteria),
        columns=columns or {},
        ignored_criteria=ignored_criteria,
        offsets=offsets,
    )


def faults(folder, **tables) -> list[str]:
    with pytest.raises(DataError) as caught:
        load(folder, **tables)
    message = str(caught.value)
    assert "CANARY" not in message
    assert message.startswith("The corpus breaks the data contract:\n")
    return [line.removeprefix("  - ") for line in message.splitlines()[1:]]


def annotation(**cells):
    return {"post_id": "p1", "criterion_id": "A.1", "status": 1, **cells}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_corpus_loads_as_it_is_written(tmp_path, suffix):
    corpus = load(tmp_path, suffix=suffix)
    assert corpus.posts == (
        Post("007", "NA", "u1"),
        Post("p1", POSTS[0]["text"], "u1"),
        Post("p2", 'first line\r\nsecond "quoted" line 😔', "p2"),
    )
    assert [(a.post_id, a.criterion_id, a.status, a.row) for a in corpus.annotations] == [
        ("007", "A.6", 0, 4),
        ("p1", "A.4", 1, 1),
        ("p1", "A.6", 0, 2),
    ]
    assert corpus.annotations[0].sentence_id == "s1"
    assert corpus.annotations[1].evidence_text == "sleep."
    assert (corpus.annotations[2].start_char, corpus.annotations[2].end_char) == (0, 6)
    assert corpus.ignored == {"SPECIAL_CASE": 1}
    assert len(corpus.criteria) == 9


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    fingerprint = load(tmp_path).fingerprint
    for suffix in (".jsonl", ".parquet"):
        assert load(tmp_path, suffix=suffix).fingerprint == fingerprint
    draw = random.Random(0)
    shuffled = load(tmp_path, posts=draw.sample(POSTS, 3), annotations=draw.sample(ANNOTATIONS, 4))
    assert shuffled.fingerprint == fingerprint
    renamed = load(
        tmp_path,
        posts=[{"id": p["post_id"], "body": p["text"], "group_id": p["group_id"]} for p in POSTS],
        columns={"posts": {"post_id": "id", "text": "body"}},
    )
    assert renamed.fingerprint == fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        {"posts": [{**POSTS[0], "text": POSTS[0]["text"] + " "}, *POSTS[1:]]},
        {"posts": [{**POSTS[0], "group_id": "u2"}, *POSTS[1:]]},
        {"annotations": [{**ANNOTATIONS[0], "status": 0}, *ANNOTATIONS[1:]]},
        {"annotations": [*ANNOTATIONS, ANNOTATIONS[0]]},
        {"annotations": [{**ANNOTATIONS[0], "evidence_text": "sleep"}, *ANNOTATIONS[1:]]},
    ],
)
def test_another_content_has_another_fingerprint(tmp_path, changed):
    assert load(tmp_path, **changed).fingerprint != load(tmp_path).fingerprint


def test_own_criteria_are_sorted_with_numbers_as_numbers(tmp_path):
    rows = [annotation(criterion_id=name) for name in ("B.10", "ten", "Tenth", "B.2")]
    for criteria in (CRITERIA, CRITERIA[::-1]):
        corpus = load(tmp_path, criteria=criteria, annotations=rows)
        assert [c.criterion_id for c in corpus.criteria] == ["B.2", "B.10"]
        assert corpus.criteria[1].aliases == ("TEN", "tenth")
        assert [a.criterion_id for a in corpus.annotations] == ["B.10"] * 3 + ["B.2"]


@pytest.mark.parametrize(
    ("value", "status"),
    [
        *[
            (1, 1),
            (0, 0),
            ("1", 1),
            ("0", 0),
            (1.0, 1),
            (0.0, 0),
            ("1.0", 1),
            (True, 1),
            (False, 0),
        ],
        *[("TRUE", 1), ("FALSE", 0), ("Yes", 1), ("no", 0), (" 1", 1)],
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_status_is_0_or_1_in_any_spelling(tmp_path, value, status, suffix):
    corpus = load(tmp_path, annotations=[annotation(status=value)], suffix=suffix)
    assert [a.status for a in corpus.annotations] == [status]


@pytest.mark.parametrize(
    ("posts", "fault"),
    [
        ([*POSTS, POSTS[1]], "row 4, column post_id: must be unique ('p2' is in row 2 too)"),
        ([{"post_id": "", "text": "x"}], "row 1, column post_id: must not be missing"),
        (
            [{"post_id": " ", "text": "x"}],
            "row 1, column post_id: must not be only whitespace or invisible characters",
        ),
        ([{"post_id": "p1", "text": ""}], "row 1, column text: must not be missing"),
        (
            [{"post_id": "p1", "text": "\n \t"}],
            "row 1, column text: must not be only whitespace or invisible characters",
        ),
        (
            [{"post_id": "p1", "text": "\u200b \u00ad\ufeff\u2060\u3164"}],
            "row 1, column text: must not be only whitespace or invisible characters",
        ),
        (
            [{"post_id": "p1", "text": f"{CANARY}\0"}],
            "row 1, column text: must not hold NUL or unpaired surrogates",
        ),
    ],
)
def test_a_bad_post_is_found(tmp_path, posts, fault):
    rows = [annotation(post_id=posts[0]["post_id"])]
    assert f"posts.csv, {fault}" in faults(tmp_path, posts=posts, annotations=rows)


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        ({"post_id": ""}, "column post_id: must not be missing"),
        ({"post_id": "p9"}, "column post_id: must be in the posts ('p9')"),
        (
            {"post_id": CANARY},
            "column post_id: must be in the posts (<20 characters, not shown>)",
        ),
        ({"criterion_id": ""}, "column criterion_id: must not be missing"),
        ({"criterion_id": "B.1"}, "column criterion_id: must be a criterion or an alias ('B.1')"),
        ({"status": ""}, "column status: must not be missing"),
        ({"status": 2}, "column status: must be 0 or 1"),
        ({"status": "maybe"}, "column status: must be 0 or 1"),
        ({"status": 0.5}, "column status: must be 0 or 1"),
        ({"start_char": 1}, "column end_char: must come with the other offset"),
        ({"end_char": 1}, "column start_char: must come with the other offset"),
        ({"start_char": "a", "end_char": 2}, "column start_char: must be an integer"),
        ({"start_char": 1, "end_char": 2.5}, "column end_char: must be an integer"),
        ({"start_char": -1, "end_char": 2}, "column start_char: must not be negative (-1)"),
        (
            {"start_char": 5, "end_char": 5},
            "column end_char: must be greater than start_char (5 and 5)",
        ),
        (
            {"start_char": 0, "end_char": 38},
            "column end_char: must not be beyond the text (38, but the text has 36 characters)",
        ),
        (
            {"start_char": 6, "end_char": 7},
            "column start_char: must begin a span that is more than whitespace",
        ),
        (
            {"start_char": 0, "end_char": 6, "evidence_text": CANARY},
            "column evidence_text: must be the text at start_char and end_char",
        ),
        (
            {"evidence_text": "  "},
            "column evidence_text: must not be only whitespace or invisible characters",
        ),
    ],
)
def test_a_bad_annotation_is_found(tmp_path, cells, fault):
    rows = [annotation(), annotation(**cells)]
    found = [line.partition("; known:")[0] for line in faults(tmp_path, annotations=rows)]
    assert found == [f"annotations.csv, row 2, {fault}"]


@pytest.mark.parametrize("cell", ["nan", "None", " NULL ", "N/A", "-", "NaN"])
def test_evidence_that_only_says_that_there_is_none_is_missing_and_counted(tmp_path, cell):
    rows = [
        annotation(evidence_text=cell),
        annotation(evidence_text="none of it", criterion_id="A.2"),
    ]
    corpus = load(tmp_path, annotations=rows)
    assert [a.evidence_text for a in corpus.annotations] == [None, "none of it"]
    assert corpus.n_missing_evidence == 1


def test_the_word_none_is_evidence_where_offsets_say_so(tmp_path):
    posts = [{"post_id": "p1", "text": "Appetite: None."}]
    rows = [annotation(start_char=10, end_char=14, evidence_text="None")]
    corpus = load(tmp_path, posts=posts, annotations=rows)
    assert [(a.start_char, a.end_char) for a in corpus.annotations] == [(10, 14)]
    assert corpus.n_missing_evidence == 0


def test_spaces_around_an_annotator_make_nobody_else(tmp_path):
    rows = [
        annotation(annotator_id="ada"),
        annotation(annotator_id=" ada ", criterion_id="A.2"),
        annotation(criterion_id="A.3"),
    ]
    corpus = load(tmp_path, annotations=rows)
    assert [a.annotator_id for a in corpus.annotations] == ["ada", "ada", None]


EMOJI = {"posts": [{"post_id": "p1", "text": "😭😭😭 It rained. I lie awake."}]}


def test_offsets_are_read_in_the_unit_of_the_settings(tmp_path):
    rows = [annotation(start_char=18, end_char=30, evidence_text="I lie awake.")]
    corpus = load(tmp_path, **EMOJI, annotations=rows, offsets=OffsetStyle("utf16"))
    assert (corpus.annotations[0].start_char, corpus.annotations[0].end_char) == (15, 27)
    rows = [annotation(start_char=18, end_char=29)]
    corpus = load(
        tmp_path, **EMOJI, annotations=rows, offsets=OffsetStyle("utf16", inclusive_ends=True)
    )
    assert (corpus.annotations[0].start_char, corpus.annotations[0].end_char) == (15, 27)


def test_where_offsets_are_wrong_the_unit_that_mends_them_is_named_first(tmp_path):
    rows = [
        annotation(start_char=18, end_char=30),
        annotation(start_char=7, end_char=17, evidence_text="It rained.", criterion_id="A.2"),
    ]
    found = faults(tmp_path, **EMOJI, annotations=rows)
    assert found == [
        "annotations.csv, columns start_char and end_char: must be counted as the settings say "
        "(`data.offset_unit=utf16` mends 2 of the 2 wrong rows)",
        "annotations.csv, row 1, column end_char: must not be beyond the text "
        "(30, but the text has 27 characters)",
        "annotations.csv, row 2, column evidence_text: must be the text at start_char and end_char",
    ]


def test_offsets_that_fit_the_text_and_the_evidence_are_accepted(tmp_path):
    rows = [
        annotation(start_char=0, end_char=36),
        annotation(start_char="0.0", end_char="6.0", evidence_text="canary"),
    ]
    corpus = load(tmp_path, annotations=rows)
    assert sorted((a.start_char, a.end_char) for a in corpus.annotations) == [(0, 6), (0, 36)]


@pytest.mark.parametrize(
    ("criteria", "fault"),
    [
        (
            [*CRITERIA, {**CRITERIA[1], "name": "again"}],
            "row 3, column criterion_id: must be unique ('B.2' is in row 2 too)",
        ),
        (
            [CRITERIA[0], {**CRITERIA[1], "aliases": "ten"}],
            "row 2, column aliases: must be no name of another criterion "
            "('ten' is also a name of row 1)",
        ),
        (
            [CRITERIA[0], {**CRITERIA[1], "aliases": "b.10"}],
            "row 2, column aliases: must be no name of another criterion "
            "('b.10' is also a name of row 1)",
        ),
        ([{**CRITERIA[0], "text": ""}], "row 1, column text: must not be missing"),
        (
            [{**CRITERIA[0], "name": " "}],
            "row 1, column name: must not be only whitespace or invisible characters",
        ),
    ],
)
def test_a_bad_criterion_is_found(tmp_path, criteria, fault):
    rows = [annotation(criterion_id="B.10")]
    assert faults(tmp_path, criteria=criteria, annotations=rows) == [f"criteria.csv, {fault}"]


def test_unpaired_surrogates_are_found_in_jsonl(tmp_path):
    posts = [{"post_id": "p1", "text": "x\ud800"}]
    rows = [annotation(evidence_text="\udfff", status="\udc00")]
    rule = "must not hold NUL or unpaired surrogates"
    assert faults(tmp_path, posts=posts, annotations=rows, suffix=".jsonl") == [
        f"posts.jsonl, row 1, column text: {rule}",
        f"annotations.jsonl, row 1, column evidence_text: {rule}",
        f"annotations.jsonl, row 1, column status: {rule}",
    ]


def test_all_faults_of_all_tables_come_in_one_error(tmp_path):
    assert faults(
        tmp_path,
        posts=[*POSTS, {"post_id": "p1", "text": ""}],
        annotations=[annotation(status=3, post_id="p8"), annotation(start_char=9, end_char=2)],
        criteria=[{"criterion_id": "A.1", "name": ""}],
    ) == [
        "posts.csv, row 4, column text: must not be missing",
        "annotations.csv, row 1, column status: must be 0 or 1",
        "criteria.csv, column text: is missing (the file has 'criterion_id', 'name')",
        "criteria.csv, row 1, column name: must not be missing",
        "posts.csv, row 4, column post_id: must be unique ('p1' is in row 1 too)",
        "annotations.csv, row 1, column post_id: must be in the posts ('p8'); "
        "known: 'p1', 'p2', '007'",
        "annotations.csv, row 2, column end_char: must be greater than start_char (9 and 2)",
    ]


def test_missing_files_and_missing_columns_are_told_together(tmp_path):
    with pytest.raises(DataError) as caught:
        load_corpus(
            posts=tmp_path / "gone.csv",
            annotations=write(tmp_path / "annotations.csv", [{"id": "p1", CANARY: 1}]),
            criteria=tmp_path / "criteria.xlsx",
            columns={"annotations": {"evidence_text": "sentence_text"}},
            ignored_criteria=[],
        )
    message = str(caught.value)
    assert "gone.csv: there is no such file" in message
    assert "criteria.xlsx: a table must be a .csv, .tsv, .json, .jsonl, .parquet file" in message
    for column in ("post_id", "criterion_id", "status", "sentence_text"):
        found = "the file has 'id', <20 characters, not shown>"
        assert f"annotations.csv, column {column}: is missing ({found})" in message
    assert "CANARY" not in message


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (["Post ID", "What was written"], "'Post ID', 'What was written'"),
        (["number", "Status ", "any other thing"], "'number', 'Status', 'any other thing'"),
        (["body", "my own column"], "'body', 'my own column'"),  # mapped
        # The first row of a file without a header.
        (["p1", "I want to sleep"], "'p1', <15 characters, not shown>"),
        (["post 1", "Help"], "<6 characters, not shown>, 'Help'"),
        # A line end is missing after the header.
        (["post_id", "text p1", "I want to sleep well"], "'post_id', 'text p1', <20 "),
        (["post_id", "a " * 40], "'post_id', <79 characters, not shown>"),
    ],
)
def test_names_of_columns_are_shown_beside_a_known_one_where_they_are_no_text(
    tmp_path, header, found
):
    path = tmp_path / "posts.csv"
    path.write_text(f"{','.join(header)}\n{','.join('x' * len(header))}\n")
    with pytest.raises(DataError) as caught:
        load_corpus(
            posts=path,
            annotations=write(tmp_path / "annotations.csv", [annotation()]),
            criteria=write(tmp_path / "criteria.csv", CRITERIA),
            columns={"posts": {"group_id": "body"}},
            ignored_criteria=[],
        )
    assert f"(the file has {found}" in str(caught.value)


@pytest.mark.parametrize("kind", ["posts", "annotations", "criteria"])
def test_a_table_without_rows_is_a_fault(tmp_path, kind):
    path = tmp_path / "empty.csv"
    header = {
        "posts": "post_id,text",
        "annotations": "post_id,criterion_id,status",
        "criteria": "criterion_id,name,text",
    }[kind]
    path.write_text(f"{header}\n", "utf-8")
    paths = {
        "posts": write(tmp_path / "posts.csv", POSTS),
        "annotations": write(tmp_path / "annotations.csv", [annotation()]),
        "criteria": None,
        kind: path,
    }
    with pytest.raises(DataError, match=r"empty\.csv: must have at least one row"):
        load_corpus(**paths, columns={}, ignored_criteria=[])


def test_more_than_fifty_faults_are_counted_by_rule(tmp_path):
    rows = [annotation(status=5) for _ in range(60)] + [annotation(post_id="p9")] * 3
    lines = faults(tmp_path, annotations=rows)
    assert len(lines) == 52
    assert lines[49] == "annotations.csv, row 50, column status: must be 0 or 1"
    assert lines[50:] == [
        "and 10 more of: must be 0 or 1",
        "and 3 more of: must be in the posts",
    ]


@pytest.mark.parametrize("label", ["A.4", "sleep_issues"])
def test_a_criterion_cannot_be_ignored(tmp_path, label):
    with pytest.raises(ConfigError, match=r"is criterion A\.4"):
        load(tmp_path, ignored_criteria=["SPECIAL_CASE", label])


def test_a_label_that_is_not_ignored_is_unknown(tmp_path):
    rule = (
        "must be a criterion or an alias ('special_case'); "
        "known: 'A.1', 'A.2', 'A.3', 'A.4', 'A.5', 'A.6', 'A.7', 'A.8', 'A.9'"
    )
    found = faults(tmp_path, ignored_criteria=[])
    assert found == [f"annotations.csv, row 3, column criterion_id: {rule}"]


def test_a_column_map_with_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"columns\.posts.*but maps txt"):
        load(tmp_path, columns={"posts": {"txt": "text"}})


def test_csv_cells_are_kept_to_the_character(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(
        b'\xef\xbb\xbfa,b\r\n001,"x\r\ny\nz\rw"\r\n\r\nnull," ""q"" "\r\nNaN,\r\n'
        + b"long,"
        + b"y" * 200_000
        + b"\r\n"
    )
    frame = read_table(path)
    assert list(frame["a"]) == ["001", "null", "NaN", "long"]
    assert list(frame["b"]) == ["x\r\ny\nz\rw", ' "q" ', None, "y" * 200_000]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"a,b\n1,2\nCANARY,2,3\n4\n", "row 2 (ends on line 3): must have as many"),
        ("t.csv", b"a,b\n1,2\nCANARY,2,3\n4\n", "row 3 (ends on line 4): must have as many"),
        ("t.csv", b'a,b\n1,"CANARY\n', "t.csv, line 2: malformed CSV"),
        ("t.csv", b"a,b\n1,2\nCANARY,\xff\n", "t.csv, line 3: the file must be UTF-8"),
        ("t.csv", b"a,a\n1,CANARY\n", "each column must occur once, but these do not: 'a'"),
        ("t.csv", b"\n", "t.csv: the file is empty"),
        ("t.jsonl", b'{"a": 1}\n{"a": CANARY}\n[1]\n', "line 2: must be JSON (error at column 7)"),
        ("t.jsonl", b'{"a": 1}\n{"a": CANARY}\n[1]\n', "line 3: must be a JSON object"),
        ("t.jsonl", b'{"a": ["CANARY"]}\n', "row 1, column 'a': must be text or a number (is a"),
        ("t.parquet", b"CANARY", "t.parquet: malformed Parquet"),
        ("t.txt", b"a,b", "must be a .csv, .tsv, .json, .jsonl, .parquet file"),
        ("t.json", b'{\n "a": 1\n}', "(pandas writes what is read here with `to_json("),
        ("t.json", b'[{"a": CANARY}]', "line 1: must be one JSON array of objects"),
        ("t.json", b'[{"a": "CANARY"}, "CANARY"]', "record 2: must be a JSON object"),
        ("t.jsonl", b'{"a": "x", "a": "CANARY"}\n', "line 1: must have each key once ('a')"),
        ("t.jsonl", b"[" * 100_000, "t.jsonl: must be one JSON array of objects"),
        ("t.csv", "a,b\n1,CANARY\n".encode("utf-16-le"), "probably UTF-16 without a byte order"),
        ("t.csv", "a,b\n".encode("utf-16") + b"x", "the file begins as UTF-16, but is none"),
        ("t.csv", "a,b\n1,CANARY’s\n".encode("cp1252"), "`iconv -f cp1252 -t utf-8 OLD > NEW`"),
    ],
)
def test_a_malformed_file_is_named_with_the_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert message in str(caught.value)
    assert "CANARY" not in str(caught.value)


POST_COLUMNS = {"post_id", "text", "group_id"}
TWO_POSTS = {"post_id": ["p1", "p2"], "text": ["a, b", 'c "d"\ne']}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'post_id;text\np1;a, b\np2;"c ""d""\ne"\n'),
        ("t.csv", 'post_id\ttext\np1\ta, b\np2\t"c ""d""\ne"\n'),
        ("t.csv", '\n post_id , text\np1,"a, b"\np2,"c ""d""\ne"\n'),
        ("t.csv", 'post_id, text\np1, "a, b"\np2, "c ""d""\ne"\n'),
        ("t.tsv", 'post_id\ttext\np1\ta, b\np2\t"c ""d""\ne"\n'),
        ("t.tsv", 'post_id,text\np1,"a, b"\np2,"c ""d""\ne"\n'),
        ("t.json", json.dumps(pd.DataFrame(TWO_POSTS).to_dict("records"))),
        ("t.jsonl", ' [{"post_id":"p1","text":"a, b"},\n {"post_id":"p2","text":"c \\"d\\"\\ne"}]'),
        ("t.json", '{"post_id":"p1","text":"a, b"}\n{"post_id ":"p2","text":"c \\"d\\"\\ne"}'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_table_is_read_whatever_its_delimiter_layout_or_unicode_encoding(
    tmp_path, name, content, encoding
):
    path = tmp_path / name
    path.write_bytes(content.encode(encoding))
    assert read_table(path, POST_COLUMNS).to_dict("list") == TWO_POSTS


def test_cells_keep_their_spaces_where_the_header_alone_has_one(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("post_id, text\np1, x\np2,y\n", "utf-8")
    assert list(read_table(path)["text"]) == [" x", "y"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_columns_that_nothing_maps_may_hold_anything(tmp_path, suffix):
    extra = {"media": {"a": 1}, "awards": [1, 2], "list": [{"text": 1}]}
    if suffix == ".parquet":
        extra["at"] = datetime(2026, 1, 1)
    posts = [{**post, **extra} for post in POSTS]
    assert load(tmp_path, posts=posts, suffix=suffix).posts == load(tmp_path).posts


def test_columns_that_nothing_maps_may_have_one_name(tmp_path):
    (tmp_path / "t.csv").write_text("post_id,,,text,x,x\np1,,,hello,1,2\n", "utf-8")
    assert list(read_table(tmp_path / "t.csv", POST_COLUMNS)["text"]) == ["hello"]
    (tmp_path / "t.jsonl").write_text('{"post_id": 1, "text": "a", "x": 1, "x": 2}', "utf-8")
    assert list(read_table(tmp_path / "t.jsonl", POST_COLUMNS)["text"]) == ["a"]


def test_numbers_of_json_are_kept_as_long_as_they_are(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": ' + "9" * 5000 + ', "b": 1e999}', "utf-8")
    frame = read_table(tmp_path / "t.jsonl")
    assert frame.to_dict("list") == {"a": ["9" * 5000], "b": ["inf"]}


@pytest.mark.parametrize(
    ("label", "criterion_id"),
    [("Sleep problems", "A.4"), (" a.4 ", "A.4"), ("FATIGUE", "A.6"), ("sleep_issues", "A.4")],
)
def test_a_criterion_is_known_by_its_id_its_name_and_its_aliases(tmp_path, label, criterion_id):
    corpus = load(tmp_path, annotations=[annotation(criterion_id=label)])
    assert corpus.annotations[0].criterion_id == criterion_id


def test_a_name_that_could_mean_two_criteria_means_none(tmp_path):
    criteria = [{**row, "name": "Mood"} for row in CRITERIA]
    found = faults(tmp_path, criteria=criteria, annotations=[annotation(criterion_id="mood")])
    assert found == [
        "annotations.csv, row 1, column criterion_id: must be a criterion or an alias ('mood'); "
        "known: 'B.2', 'B.10'"
    ]


def test_an_unknown_criterion_is_shown_unless_it_is_text_of_a_post(tmp_path):
    rows = [
        annotation(criterion_id=name) for name in ("Loss of appetite", "private  WORDS I cannot")
    ]
    first, second = faults(tmp_path, annotations=rows)
    assert "('Loss of appetite'); known: 'A.1', 'A.2'" in first
    assert second.endswith("(<23 characters, not shown>)")


PIECES = [
    *(
        b"post_id",
        b"text",
        b",",
        b";",
        b"\t",
        b'"',
        b"\n",
        b"\r",
        b" ",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
    ),
    *(b"null", b"1e9", b'{"post_id": 1, "text": "', b'"}\n', b"\0", b"\\u", b"post_id,text\n"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\xe9", CANARY.encode()),
]


@settings(max_examples=300, deadline=None)
@given(
    suffix=st.sampled_from([".csv", ".tsv", ".json", ".jsonl"]),
    pieces=st.lists(
        st.one_of(
            st.sampled_from(PIECES),
            st.binary(max_size=8),
        ),
        max_size=30,
    ),
    encoding=st.sampled_from([None, "utf-16", "utf-16-le"]),
)
def test_any_bytes_give_posts_or_an_error_without_their_text(
    tmp_path_factory, suffix, pieces, encoding
):
    folder = tmp_path_factory.mktemp("bytes")
    content = b"".join(pieces)
    if encoding is not None:
        content = content.decode("latin-1").encode(encoding)
    (folder / f"posts{suffix}").write_bytes(content)
    rows = write(folder / "annotations.csv", [annotation(post_id="1")])
    message = ""
    try:
        load_corpus(
            posts=folder / f"posts{suffix}",
            annotations=rows,
            criteria=None,
            columns={},
            ignored_criteria=[],
        )
    except (DataError, ConfigError) as error:
        message = str(error)
    assert CANARY not in message


def test_jsonl_lines_end_at_line_feeds_only(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": "x\u2028y"}\r\n\n{"a": 7, "b": 1.5}\n', "utf-8", newline="")
    assert read_table(path).to_dict("list") == {"a": ["x\u2028y", "7"], "b": [None, "1.5"]}


def test_parquet_integers_beside_gaps_stay_integers(tmp_path):
    path = tmp_path / "key=1" / "t.parquet"
    path.parent.mkdir()
    pd.DataFrame({"a": pd.array([7, None], dtype="Int64")}).to_parquet(path)
    assert read_table(path).to_dict("list") == {"a": ["7", None]}


FORBIDDEN = SimpleNamespace(headers={}, request=None)
REDSM5_COLUMNS = {"annotations": {"criterion_id": "DSM5_symptom", "evidence_text": "sentence_text"}}


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A local directory that `load_dataset` reads as it would a hub repository."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    rows = [
        {"post_id": "p1", "sentence_text": "sleep", "DSM5_symptom": "FATIGUE", "status": 1},
        {"post_id": "p2", "sentence_text": None, "DSM5_symptom": "SPECIAL_CASE", "status": 0},
    ]
    posts = [{"post_id": p["post_id"], "text": p["text"]} for p in POSTS[:2]]
    folder = tmp_path / "redsm5"
    folder.mkdir()
    write(folder / "redsm5_posts.csv", posts)
    write(folder / "redsm5_annotations.csv", rows)
    return folder


def load_hub(folder):
    return load_hub_corpus(
        repo=str(folder),
        revision=None,
        criteria=None,
        columns=REDSM5_COLUMNS,
        ignored_criteria=["SPECIAL_CASE"],
    )


def test_a_hub_data_set_of_two_files_loads(hub_folder):
    corpus = load_hub(hub_folder)
    assert [post.text for post in corpus.posts] == [post["text"] for post in POSTS[:2]]
    assert [(a.criterion_id, a.evidence_text) for a in corpus.annotations] == [("A.6", "sleep")]
    assert corpus.ignored == {"SPECIAL_CASE": 1}


def test_a_hub_data_set_of_two_configurations_is_the_same_corpus(hub_folder):
    expected = load_hub(hub_folder)
    (hub_folder / "redsm5_posts.csv").rename(hub_folder / "a.csv")
    (hub_folder / "redsm5_annotations.csv").rename(hub_folder / "b.csv")
    (hub_folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: texts\n  data_files: a.csv\n"
        "- config_name: labels\n  data_files: b.csv\n---\n",
        "utf-8",
    )
    assert load_hub(hub_folder) == expected


def test_the_hub_without_datasets_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'psy-agents-noaug\[hub\]'"):
        read_hub("irlab-udc/redsm5", revision=None, columns={})


def test_hub_tables_that_are_not_recognised_are_described(hub_folder):
    with pytest.raises(DataError) as caught:
        read_hub(str(hub_folder), revision=None, columns={})
    assert "'post_id', 'sentence_text', 'DSM5_symptom', 'status'" in str(caught.value)
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (DatasetNotFoundError("x"), "is gated, or is not there"),
        (GatedRepoError("x", response=FORBIDDEN), "is gated"),
        (RevisionNotFoundError("x", response=FORBIDDEN), "could not be reached"),
        (ConnectionError("x"), "could not be reached"),
    ],
)
def test_a_gated_hub_data_set_says_how_to_get_access(monkeypatch, error, what):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError) as caught:
        read_hub("irlab-udc/redsm5", revision=None, columns={})
    message = str(caught.value)
    assert f"The data set irlab-udc/redsm5 {what}." in message
    assert "https://huggingface.co/datasets/irlab-udc/redsm5" in message
    assert "hf auth login" in message
    assert "data=redsm5 data.dir=" in message
