"""Posts a part at a time: the same posts as in a whole table, and every fault with its row."""

import io
import json
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psy_agents_noaug.data import table_parts
from psy_agents_noaug.data.posts_stream import PostsStream, SeenIdentifiers, check_posts
from psy_agents_noaug.data.tables import read_table
from psy_agents_noaug.errors import ConfigError, DataError

ODD = 'a "quoted" word, a comma;\r\n a line end\n\n🐕 and\ta tab | bar'


def posts_of(path, *, columns=None, rows=2):
    """Return the posts of a file as a list of pairs, and the sizes of the parts."""
    stream = PostsStream(path, columns or {}, rows=rows)
    try:
        parts = list(stream)
    finally:
        stream.close()
    pairs = [pair for part in parts for pair in zip(*part.to_pydict().values(), strict=True)]
    return pairs, [len(part) for part in parts]


def fault_of(path, **options):
    with pytest.raises(DataError) as raised:
        posts_of(path, **options)
    return str(raised.value)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file and returns its path."""

    def written(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return written


@pytest.fixture
def piped(monkeypatch):
    """Return a function that makes bytes standard input."""

    def pipe(content):
        raw = content if isinstance(content, bytes) else content.encode()
        stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(raw)))
        monkeypatch.setattr(sys, "stdin", stdin)

    return pipe


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


CSV = f"post_id,text,more\np1,{quoted(ODD)},x\n\np2,NA,\n007, spaced ,y\np4,last,z\n"
LINES = [
    {"post_id": "p1", "text": ODD, "more": [1, 2]},
    {"post_id": 12345678901234567890123, "text": "numbers are text"},
    {"post_id": "p3", "text": 3.5, "extra": None},
    {"text": "keys in another order", "post_id": "p4"},
    {"post_id": "p5", "text": "é\u2028è"},
]
JSONL = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in LINES)
FILES = {
    "comma.csv": CSV,
    "no end.csv": CSV.rstrip("\n"),
    "semicolon.csv": 'text;post_id\n"a;b";p1\nc,d;p2\ne;p3\n',
    "tab.csv": "post_id\ttext\np1\ta,b\np2\tc\n",
    "bar.tsv": "post_id|text\np1|a,b\np2|c\n",
    "tab.tsv": "post_id\ttext\np1\ta,b\np2\tc\n",
    "crlf.csv": CSV.replace("\n", "\r\n"),
    "cr.csv": "post_id,text\rp1,a\rp2,b\rp3,c\r",
    "mark.csv": b"\xef\xbb\xbf" + CSV.encode(),
    "utf16.csv": CSV.encode("utf-16"),
    "utf32.csv": CSV.encode("utf-32"),
    "blank lines.csv": "\n\n \r\n\npost_id,text\n\n\np1,a\n\n\n\np2,b\n\n"[2:].replace(" \r\n", ""),
    "spaced.csv": 'post_id, text, more\np1, "a text, with a comma", 1\np2, b, 2\np3, c, 3\n',
    "spaced header.csv": "post_id, text, more\np1, a, 1\np2, b, 2\np3,c, 3\n",
    "two-line header.csv": 'post_id,"more\nwords",text\np1,x,a\np2,y,b\n',
    "one column more.csv": 'post_id," text",b\np1,x,1\n',
    "lines.jsonl": JSONL,
    "lines.json": "\n \n" + JSONL + "\n\n",
    "mark.jsonl": b"\xef\xbb\xbf" + JSONL.encode(),
    "utf16.jsonl": JSONL.encode("utf-16"),
    "crlf.jsonl": JSONL.replace("\n", "\r\n"),
    "array.json": json.dumps(LINES, indent=2),
    "array.jsonl": "\n  " + json.dumps(LINES),
}


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize("name", FILES)
def test_the_posts_are_those_of_the_whole_table(write, name, rows):
    path = write(name, FILES[name])
    whole = read_table(path, {"post_id", "text"})
    found, sizes = posts_of(path, rows=rows)
    assert found == list(zip(whole["post_id"], whole["text"], strict=True))
    assert max(sizes) <= rows
    assert 0 not in sizes


@pytest.mark.parametrize(
    "name", [name for name in FILES if "spaced" not in name and ".tsv" not in name]
)
def test_standard_input_is_read_like_a_file(write, piped, name):
    expected, _ = posts_of(write(name, FILES[name]))
    piped(FILES[name])
    assert posts_of(None)[0] == expected
    assert sys.stdin.buffer.closed is False


def test_parquet_with_texts_that_are_not_utf_8_is_malformed(tmp_path):
    texts = pa.Array.from_buffers(pa.string(), 1, pa.array([b"SECRET \xff"]).buffers())
    pq.write_table(pa.table({"post_id": ["p"], "text": texts}), tmp_path / "p.parquet")
    told = fault_of(tmp_path / "p.parquet")
    assert "p.parquet: malformed Parquet (UnicodeDecodeError)." in told
    assert "SECRET" not in told


def test_a_parquet_file_is_read_in_parts_of_its_row_groups(tmp_path):
    path = tmp_path / "key=value" / "posts.parquet"
    path.parent.mkdir()
    table = pa.table({" text ": ["a", "b", "c"], "other": [[1], [2], []], "post_id": [7, 8, 9]})
    pq.write_table(table, path, row_group_size=2)
    found, sizes = posts_of(path, rows=2)
    assert found == [("7", "a"), ("8", "b"), ("9", "c")]
    assert sum(sizes) == 3
    assert max(sizes) <= 2


def test_columns_of_other_names_are_mapped_and_authors_do_not_matter(write):
    path = write("posts.csv", "id,body\np1,a\n")
    columns = {"post_id": "id", "text": " body ", "group_id": "author"}
    assert posts_of(path, columns=columns)[0] == [("p1", "a")]
    with pytest.raises(ConfigError, match=r"`columns\.posts` must map post_id, text"):
        posts_of(path, columns={"post": "id"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("posts.csv", "id,words\np1,a\n"),
        ("posts.jsonl", '{"id": "p1", "words": "a"}\n'),
        ("posts.json", '[{"id": "p1", "words": "a"}]'),
        ("posts.parquet", None),
    ],
)
def test_missing_columns_are_told_at_once_before_anything_is_given_out(
    tmp_path, write, name, content
):
    if content is None:
        path = tmp_path / name
        pq.write_table(pa.table({"id": ["p1"], "words": ["a"]}), path)
    else:
        path = write(name, content)
    with pytest.raises(DataError) as raised:
        PostsStream(path, {}, rows=1)
    for column in ("post_id", "text"):
        assert f"{name}, column {column}: is missing (the file has " in str(raised.value)


def _rows(n, *, bad):
    """A CSV of `n` posts, some of which are replaced: a row by its number, from 1."""
    lines = [bad.get(row, f"p{row},post number {row}") for row in range(1, n + 1)]
    return "\n".join(["post_id,text", *lines])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (",no id", "row 905, column post_id: must not be missing"),
        ("p905,", "row 905, column text: must not be missing"),
        ("p905,  ", "row 905, column text: must not be only whitespace or invisible characters"),
        ("p905,SECRET\0", "row 905, column text: must not hold NUL or unpaired surrogates"),
        (
            "p905,SECRET,more",
            "row 905 (ends on line 906): must have as many fields as the header (3",
        ),
        ('p905,"SECRET"x', "line 906: malformed CSV: "),
        ("p3,SECRET", "row 905, column post_id: must be unique (an earlier row has 'p3' too)"),
        ("p904,SECRET", "row 905, column post_id: must be unique ('p904' is in row 904 too)"),
        ("SECRET " * 30 + ",x", "row 905, column post_id: must be an identifier"),
    ],
)
def test_a_fault_far_down_is_told_with_its_row_and_what_precedes_its_part_is_given_out(
    write, line, told
):
    path = write("posts.csv", _rows(1000, bad={905: line}))
    stream = PostsStream(path, {}, rows=100)
    parts = iter(stream)
    assert [len(next(parts)) for _ in range(9)] == [100] * 9
    with pytest.raises(DataError) as raised:
        next(parts)
    stream.close()
    assert told in str(raised.value)
    assert "SECRET" not in str(raised.value)


def test_all_faults_of_a_part_are_told_at_once(write):
    bad = {11: "p11,", 12: ",x", 14: "p13,again", 19: 'p19,"x"y'}
    told = fault_of(write("posts.csv", _rows(40, bad=bad)), rows=10)
    for row, column in ((11, "text"), (12, "post_id"), (14, "post_id")):
        assert f"row {row}, column {column}: " in told
    assert "line 20: malformed CSV" in told


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"post_id": "q", "text": ', "line 7: must be JSON (error at column "),
        (b'["q", "SECRET"]', "line 7: must be a JSON object"),
        (b'{"post_id": "q", "text": "SECRET", "text": "b"}', "line 7: must have each key once"),
        (b'{"post_id": "q"}', "row 7, column text: must not be missing"),
        (b'{"post_id": "q", "text": ["SECRET"]}', "row 7, column 'text': must be text or a number"),
        (b'{"post_id": "q", "text": "SECRET \\ud800"}', "row 7, column text: must not hold NUL"),
        (b'{"post_id": "q", "text": "SECRET \xe9"}', "line 7: the file must be UTF-8, but is not."),
    ],
)  # fmt: skip
def test_a_fault_of_a_line_of_json_is_told_with_its_place(write, line, told):
    lines = [json.dumps({"post_id": f"p{n}", "text": "x"}).encode() for n in range(1, 11)]
    lines[6] = line
    said = fault_of(write("posts.jsonl", b"\n".join(lines)), rows=3)
    assert told in said
    assert "SECRET" not in said


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "", "a.csv: the file is empty."),
        ("a.csv", "\n\n", "a.csv: the file is empty."),
        ("a.jsonl", " \n\n", "a.jsonl: the file is empty."),
        ("a.csv", "post_id,text\n", "a.csv: must have at least one row"),
        ("a.json", "[]", "column post_id: is missing"),
        ("a.csv", "post_id,text\np,x\n".encode("utf-16-le"), "the first line holds NUL characters"),
        ("a.csv", b"\xff\xfepost_id,text\np,xy", "begins as UTF-16, but is none"),
        ("a.csv", b"post_id,text\np1,a\np2,\xe9\n", "line 3: the file must be UTF-8, but is not."),
        ("a.csv", "post_id,text,text\np1,a,b\n", "each column must occur once, but"),
        ("a.json", "[1, 2", "must be one JSON array of objects, or one object per line"),
        ("a.jsonl", "words\nmore words\n", "the file: must be one array of objects, or one"),
        ("a.parquet", "none", "malformed Parquet"),
        ("a.xlsx", "", "a table must be a .csv, .tsv, .json, .jsonl, .parquet file."),
    ],
)  # fmt: skip
def test_a_file_that_is_no_table_is_refused(write, name, content, told):
    assert told in fault_of(write(name, content))


def test_a_missing_file_is_named(tmp_path):
    assert "none.csv: there is no such file." in fault_of(tmp_path / "none.csv")


def test_a_quote_without_an_end_does_not_swallow_the_rest_of_the_file(write, monkeypatch):
    monkeypatch.setattr(table_parts, "_MAX_FIELD", 1000)
    path = write("posts.csv", _rows(1000, bad={5: 'p5,"SECRET'}))
    told = fault_of(path, rows=100)
    assert "malformed CSV: field larger than field limit (1000)" in told
    assert "SECRET" not in told


def test_a_line_without_an_end_is_refused(write, monkeypatch):
    monkeypatch.setattr(table_parts, "_MAX_LINE", 1000)
    path = write("posts.jsonl", '{"post_id": "p", "text": "' + "x" * 2000 + '"}')
    assert "line 1: must have at most 1,000 characters." in fault_of(path)


def test_a_part_of_long_posts_has_fewer_of_them(write, monkeypatch):
    monkeypatch.setattr(table_parts, "_MAX_PART", 100)
    path = write("posts.csv", _rows(10, bad={2: "p2," + "x" * 200}))
    assert posts_of(path, rows=100)[1] == [2, 7, 1]


def test_spaces_behind_the_delimiters_of_standard_input_are_refused(piped):
    piped(FILES["spaced.csv"])
    assert "a header with spaces after its delimiters can be read from a file only" in fault_of(
        None
    )


def test_a_closed_standard_input_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert "Standard input is closed. Give `data.posts=FILE`." in fault_of(None)


def test_the_part_that_is_read_grows_to_the_whole(write, piped, tmp_path):
    pq.write_table(pa.table({"post_id": ["a", "b"], "text": ["x", "y"]}), tmp_path / "a.parquet")
    records = [{"post_id": f"p{n}", "text": "x" * 5000} for n in range(20)]
    paths = [
        tmp_path / "a.parquet",
        write("a.csv", pd.DataFrame(records).to_csv(index=False)),
        write("a.jsonl", pd.DataFrame(records).to_json(orient="records", lines=True)),
        write("a.json", json.dumps(records)),
    ]
    for path in paths:
        stream = PostsStream(path, {}, rows=1)
        fractions = [stream.fraction_read for _ in stream]
        stream.close()
        assert fractions == sorted(fractions)
        assert 0 <= fractions[0] < fractions[-1] <= 1
    piped("post_id,text\np,x\n")
    stream = PostsStream(None, {}, rows=1)
    assert stream.fraction_read is None
    stream.close()


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for n_posts in (2_000, 40_000):
        path = tmp_path / f"{n_posts}.csv"
        with path.open("w") as file:
            file.write("post_id,text\n")
            file.writelines(f"p{n},{'some words of a post ' * 10}\n" for n in range(n_posts))
        tracemalloc.start()
        stream = PostsStream(path, {}, rows=100)
        assert sum(len(part) for part in stream) == n_posts
        stream.close()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 38,000 posts more: 8 bytes of each, three times while arrays are merged. The texts are 8 MB.
    assert peaks[1] - peaks[0] < 38_000 * 24 + 200_000


def test_identifiers_are_remembered_in_eight_bytes_each():
    seen, draw = SeenIdentifiers(), np.random.default_rng(0)
    known: set[str] = set()
    for size in [1, 0, *draw.integers(0, 50, size=60)]:
        names = [str(number) for number in draw.integers(0, 3000, size=size)]
        assert list(seen.add(names)) == [name in known for name in names]
        known |= set(names)
    added = sum(len(array) for array in seen._arrays)
    assert sum(array.nbytes for array in seen._arrays) == 8 * added
    assert len(seen._arrays) < 12


def test_posts_of_a_program_are_checked_like_those_of_a_file():
    frame = pd.DataFrame({"more": [1, 2], "text": ["a", "b"], "post_id": [7, 8]})
    assert check_posts(frame).to_pylist() == [
        {"post_id": "7", "text": "a"},
        {"post_id": "8", "text": "b"},
    ]
    bad = pd.DataFrame({"post_id": ["p", "p", pd.NA], "text": ["SECRET", float("nan"), " "]})
    with pytest.raises(DataError) as raised:
        check_posts(bad)
    for fault in (
        "the table of posts, row 2, column text: must not be missing",
        "the table of posts, row 3, column text: must not be only whitespace or invisible characters",
        "the table of posts, row 3, column post_id: must not be missing",
        "the table of posts, row 2, column post_id: must be unique ('p' is in row 1 too)",
    ):
        assert fault in str(raised.value)
    assert "SECRET" not in str(raised.value)
    with pytest.raises(DataError, match="column text: is missing"):
        check_posts(pd.DataFrame({"post_id": ["p"]}))
    assert len(check_posts(pd.DataFrame({"post_id": [], "text": []}))) == 0
