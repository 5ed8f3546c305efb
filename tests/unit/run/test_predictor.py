"""A trained model in Python, with a model that takes no time."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.run import predictor as module
from psy_agents_noaug.run.predictor import ExplainedSpan, Predictor

SPAN = pa.struct([("start_char", pa.int64()), ("end_char", pa.int64()), ("score", pa.float64())])
COLUMNS = {
    "post_id": pa.string(),
    "criterion_id": pa.string(),
    "probability": pa.float64(),
    "calibrated_probability": pa.float64(),
    "decision": pa.int64(),
    "evidence": pa.list_(SPAN),
}


class FakeScorer:
    """Finds words that are criteria; `drop` are columns that it does not have."""

    def __init__(self, *drop):
        kept = [(name, kind) for name, kind in COLUMNS.items() if name not in drop]
        self.schema = pa.schema(kept)
        self.sizes = []

    def __call__(self, posts):
        self.sizes.append(len(posts))
        rows = []
        for post_id, text in zip(*posts.to_pydict().values(), strict=True):
            for criterion_id, word in (("A.1", "sad"), ("A.4", "sleep")):
                start = text.find(word)
                span = {"start_char": start, "end_char": start + len(word), "score": len(word) / 10}
                rows.append(
                    {
                        "post_id": post_id,
                        "criterion_id": criterion_id,
                        "probability": 0.25,
                        "calibrated_probability": 0.125,
                        "decision": int(start >= 0),
                        "evidence": [span] if start >= 0 else [],
                    }
                )
        return pa.Table.from_pylist(rows, schema=self.schema)


TEXTS = ["I am sad 🐕 and cannot sleep", "nothing", "so sad"]


@pytest.mark.parametrize(
    "posts",
    [
        TEXTS,
        tuple(TEXTS),
        pd.Series(TEXTS),
        pd.DataFrame({"post_id": ["0", "1", "2"], "text": TEXTS, "more": 1}),
        pd.DataFrame({"text": TEXTS, "post_id": np.arange(3)}),
        pa.table({"more": [[1], [], []], "text": TEXTS, "post_id": [0, 1, 2]}),
    ],
    ids=["list", "tuple", "series", "frame", "numbers", "arrow"],
)
def test_texts_and_tables_are_predicted_as_a_table_in_their_order(posts):
    table = Predictor(FakeScorer()).predict(posts)
    assert list(table.columns) == list(COLUMNS)
    assert table["post_id"].tolist() == ["0", "0", "1", "1", "2", "2"]
    assert table["decision"].tolist() == [1, 1, 0, 0, 1, 0]
    assert table["evidence"][0] == [{"start_char": 5, "end_char": 8, "score": 0.3}]
    assert table["evidence"][2] == []
    met = table[table["decision"] == 1].groupby("criterion_id")["post_id"].agg(list)
    assert met.to_dict() == {"A.1": ["0", "2"], "A.4": ["0"]}


def test_one_text_is_one_post_and_none_are_an_empty_table():
    predictor = Predictor(FakeScorer())
    assert predictor.predict("so sad")["post_id"].tolist() == ["0", "0"]
    assert list(predictor.predict([]).columns) == list(COLUMNS)
    assert len(predictor.predict([])) == 0


def test_many_posts_are_predicted_in_parts(monkeypatch):
    monkeypatch.setattr(module, "_POSTS_PER_CHUNK", 4)
    scorer = FakeScorer()
    table = Predictor(scorer).predict(["sad"] * 10)
    assert scorer.sizes == [4, 4, 2]
    assert table["post_id"].tolist() == [str(number // 2) for number in range(20)]


@pytest.mark.parametrize("posts", [7, None, {"text": "a"}, b"bytes", iter(["a"])])
def test_what_is_no_posts_is_refused_by_its_type(posts):
    with pytest.raises(DataError, match=f"but are a {type(posts).__name__} instead"):
        Predictor(FakeScorer()).predict(posts)


def test_faults_are_told_by_row_without_a_text():
    with pytest.raises(DataError) as raised:
        Predictor(FakeScorer()).predict(["fine", "", None, "SECRET \0", ["SECRET"]])
    told = str(raised.value)
    assert "the table of posts is malformed" in told
    assert "row 5, column 'text': must be text or a number (is a list)" in told
    with pytest.raises(DataError) as raised:
        Predictor(FakeScorer()).predict(["fine", "", None, "SECRET \0"])
    told = str(raised.value)
    assert [
        f"the table of posts, row {row}, column text: must not" in told for row in (2, 3, 4)
    ] == [True] * 3
    assert "SECRET" not in told


def test_a_column_of_an_arrow_table_that_occurs_twice_is_told():
    table = pa.table([["0"], ["so"], ["sad"]], names=["post_id", "text", "text"])
    with pytest.raises(DataError, match="each column must occur once, but these do not: 'text'"):
        Predictor(FakeScorer()).predict(table)


def test_an_explanation_is_the_words_of_the_criteria_that_are_met_the_best_first():
    assert Predictor(FakeScorer()).explain(TEXTS[0]) == [
        ExplainedSpan("A.4", 22, 27, 0.5, "sleep", 0.125),
        ExplainedSpan("A.1", 5, 8, 0.3, "sad", 0.125),
    ]
    assert Predictor(FakeScorer()).explain("nothing") == []


def test_the_probability_of_an_explanation_is_what_the_model_has():
    without = Predictor(FakeScorer("calibrated_probability")).explain("so sad")
    assert [span.probability for span in without] == [0.25]
    evidence_alone = FakeScorer("calibrated_probability", "probability", "decision")
    spans = Predictor(evidence_alone).explain("so sad")
    assert [(span.text, span.probability) for span in spans] == [("sad", None)]


class OfSentences:
    """Gives these rows."""

    schema = pa.schema([("post_id", pa.string()), ("criterion_id", pa.string()),
                        ("start_char", pa.int64()), ("end_char", pa.int64()),
                        ("probability", pa.float64()), ("decision", pa.int64())])  # fmt: skip
    rows = (
        ("0", "A.1", 0, 4, 0.7, 1),
        ("0", "A.1", 5, 9, 0.9, 1),
        ("0", "A.2", 0, 4, 0.1, 0),
    )

    def __call__(self, posts):
        named = [dict(zip(self.schema.names, row, strict=True)) for row in self.rows]
        return pa.Table.from_pylist(named, schema=self.schema)


def test_a_criterion_that_the_model_was_not_trained_on_is_explained_by_raw_probabilities():
    class OfNewCriteria(OfSentences):
        schema = OfSentences.schema.append(pa.field("calibrated_probability", pa.float64()))
        rows = (("0", "A.1", 0, 4, 0.7, 1, 0.5), ("0", "X.1", 5, 9, 0.9, 1, None))

    spans = Predictor(OfNewCriteria()).explain("One. Two.")
    assert [(span.criterion_id, span.score, span.probability) for span in spans] == [
        ("X.1", 0.9, 0.9),
        ("A.1", 0.7, 0.5),
    ]


@pytest.mark.parametrize("texts", [["so sad", "and so sad"], pd.Series(["so sad"])])
def test_several_texts_are_not_explained_with_the_words_of_another(texts):
    with pytest.raises(DataError, match=r"`explain` takes one text, but got a (list|Series)"):
        Predictor(FakeScorer()).explain(texts)


def test_rows_of_sentences_are_explained_by_the_sentences_that_are_met():
    spans = Predictor(OfSentences()).explain("One. Two.")
    assert [(span.text, span.score, span.probability) for span in spans] == [
        ("Two.", 0.9, 0.9),
        ("One.", 0.7, 0.7),
    ]


def test_a_model_of_whole_posts_says_that_it_has_no_words_to_show():
    with pytest.raises(ConfigError, match="judges whole posts"):
        Predictor(FakeScorer("evidence")).explain("so sad")
