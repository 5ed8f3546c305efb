import csv

import pytest

from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.run.data import prepare_data

EVIDENCE = "I lie awake."


@pytest.fixture
def utf16_corpus(tmp_path):
    """Eight posts that begin with emoji; the offsets of their evidence count UTF-16 units."""
    posts, annotations = (
        [["post_id", "text"]],
        [["post_id", "criterion_id", "status", "start_char", "end_char"]],
    )
    for number in range(8):
        text = f"{'😭' * (number % 3 + 1)} Day {number} was wet. {EVIDENCE} Nothing helps."
        start = len(text[: text.index(EVIDENCE)].encode("utf-16-le")) // 2
        posts.append([f"p{number}", text])
        annotations.append([f"p{number}", "A.4", 1, start, start + len(EVIDENCE)])
    for name, rows in (("posts", posts), ("annotations", annotations)):
        with (tmp_path / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    return tmp_path


def prepared(folder, *settings: str):
    files = [
        "data=tables",
        f"data.dir={folder}",
        "data.posts=posts.csv",
        "data.annotations=annotations.csv",
    ]
    return prepare_data(load_train_config("evidence", [*files, *settings]))


def test_offsets_in_another_unit_are_one_warning_and_a_setting_mends_them(utf16_corpus, caplog):
    # Of the posts with one emoji the span ends inside no word.
    prepared(utf16_corpus)
    warnings = [text for text in caplog.messages if "offset" in text]
    assert len(warnings) == 1
    assert warnings[0].endswith(
        "of 8 spans given by offsets begin or end inside a word: `data.offset_unit=utf16` would mend "
        f"{warnings[0].split(' ')[0]} of them."
    )
    caplog.clear()
    data = prepared(utf16_corpus, "data.offset_unit=utf16")
    assert not any("offset" in text for text in caplog.messages)
    assert {
        example.text[span.start_char : span.end_char]
        for examples in data.examples.values()
        for example in examples
        for span in example.evidence
    } == {EVIDENCE}
    assert data.report()["alignment"]["offsets"]["offset_unit"] == "utf16"


def test_corrections_change_labels_counts_and_fingerprint_but_no_split(utf16_corpus, tmp_path):
    before = prepared(utf16_corpus, "data.offset_unit=utf16")
    assert before.report()["corrections"] is None
    rows = ["post_id,criterion_id,label,start_char,end_char,note", "p0,A.4,0,,,", "p1,A.2,1,0,2,"]
    (tmp_path / "mended.csv").write_text("\n".join(rows))
    after = prepared(utf16_corpus, "data.offset_unit=utf16", "data.corrections=mended.csv")
    assert after.splits == before.splits
    assert after.fingerprints()["corpus"] != before.fingerprints()["corpus"]
    assert after.report()["corrections"] == {
        "file": "mended.csv",
        "rows": 2,
        "notes": 0,
        "pairs": 2,
        "annotations_replaced": 1,
        "annotations_added": 2,
        "first_row": 9,
    }
    met = {
        (example.post_id, example.criterion_id): example.evidence
        for examples in after.examples.values()
        for example in examples
        if example.label
    }
    assert ("p0", "A.4") not in met
    assert met["p1", "A.2"] == (Span(0, 2),)
