"""Random corpora survive the way into a tool's format and back."""

import json
import string
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from psy_agents_noaug.config.schema import ExportConfig, ImportConfig
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.data.validation import VISIBLE
from psy_agents_noaug.exports.labelstudio import export_predictions
from psy_agents_noaug.importers.run import import_annotations

IDS = [criterion.criterion_id for criterion in MAJOR_DEPRESSIVE_EPISODE]
CHARACTERS = st.one_of(
    st.sampled_from(
        [*string.ascii_letters, " ", " ", "\n", "\r\n", "&amp;", "😀", "👩‍👩‍👧", "e\u0301"]
    ),
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
)
# The letter makes each text one that can be seen.
TEXTS = st.lists(CHARACTERS, max_size=40).map(lambda parts: "a" + "".join(parts))


@st.composite
def corpora(draw):
    """Texts by id, and for pairs of a post and a criterion the spans of evidence, sorted."""
    texts = {f"p{n}": text for n, text in enumerate(draw(st.lists(TEXTS, min_size=1, max_size=4)))}
    spans = {}
    for post_id, text in texts.items():
        ends = st.integers(0, len(text))
        pairs = st.tuples(ends, ends).map(sorted)
        for criterion_id in draw(st.lists(st.sampled_from(IDS), max_size=3, unique=True)):
            drawn = draw(st.lists(pairs, max_size=4))
            spans[post_id, criterion_id] = sorted(
                {(i, j) for i, j in drawn if VISIBLE.search(text, i, j)}
            )
    if not spans:
        spans["p0", "A.1"] = [(0, 1)]
    return texts, spans


def rows_of(folder):
    posts = {r["post_id"]: r["text"] for r in pq.read_table(folder / "posts.parquet").to_pylist()}
    found = {}
    for row in pq.read_table(folder / "annotations.parquet").to_pylist():
        assert row["status"] == 1
        own = found.setdefault((row["post_id"], row["criterion_id"]), [])
        if row["start_char"] is not None:
            span = row["start_char"], row["end_char"]
            assert posts[row["post_id"]][slice(*span)] == row["evidence_text"]
            own.append(span)
    return posts, {pair: sorted(spans) for pair, spans in found.items()}


def check_labelstudio(corpus, defaults):
    texts, spans = corpus
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(
            pa.table({"post_id": list(texts), "text": list(texts.values())}),
            folder / "posts.parquet",
        )
        lines = [
            {
                "post_id": post_id,
                "criterion_id": criterion_id,
                "decision": int((post_id, criterion_id) in spans),
                "evidence": [
                    {"start_char": i, "end_char": j, "score": 0.5}
                    for i, j in spans.get((post_id, criterion_id), ())
                ],
            }
            for post_id in texts
            for criterion_id in IDS
        ]
        (folder / "run1.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        export_predictions(
            ExportConfig(
                checkpoint=None,
                predictions=str(folder / "run1.jsonl"),
                format="labelstudio",
                posts=str(folder / "posts.parquet"),
                output=str(folder / "tasks.json"),
            )
        )
        settings = {"with_predictions": True, "output": str(folder / "back")}
        import_annotations(
            "labelstudio", folder / "tasks.json", ImportConfig(**{**defaults, **settings})
        )
        assert rows_of(folder / "back") == (texts, spans)


def check_doccano(corpus, defaults):
    texts, spans = corpus
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = [
            {
                "id": post_id,
                "text": text,
                "cats": [c for p, c in spans if p == post_id],
                "label": [
                    [i, j, c] for (p, c), own in spans.items() if p == post_id for i, j in own
                ],
            }
            for post_id, text in texts.items()
        ]
        (folder / "all.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
        # Random spans cut words, which would speak for another unit.
        settings = {
            "empty": "negative",
            "offset_unit": "code_points",
            "output": str(folder / "back"),
        }
        import_annotations(
            "doccano", folder / "all.jsonl", ImportConfig(**{**defaults, **settings})
        )
        assert rows_of(folder / "back") == (texts, spans)


@pytest.mark.parametrize("check", [check_labelstudio, check_doccano])
@pytest.mark.parametrize("number", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_corpora_come_back_as_they_were(import_defaults, check, number):
    quick = settings(
        max_examples=number,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    quick(given(corpora())(lambda corpus: check(corpus, import_defaults)))()
