"""A Scorer says of a post what an evaluation says of it, whatever else is in the table."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from psy_agents_noaug.config.loading import load_train_config, validate
from psy_agents_noaug.config.schema import EvaluateConfig, ScoringConfig
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.errors import CheckpointError, ConfigError, DataError
from psy_agents_noaug.metrics.calibration import at_prevalence
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.evaluate import evaluate
from psy_agents_noaug.run.scoring import Scorer
from psy_agents_noaug.run.train import train

IDS = [criterion.criterion_id for criterion in MAJOR_DEPRESSIVE_EPISODE]
ONE_PASS = ("model.architecture=label_attention", "recipe=none")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, overrides_for):
    """Return a function that trains once for each choice of settings, and returns the run."""
    runs = {}

    def run(*overrides, task="criteria"):
        if (task, overrides) not in runs:
            own = [*overrides_for(tmp_path_factory.mktemp("runs"), task), *overrides]
            runs[task, overrides] = train(load_train_config(task, own)).directory
        return runs[task, overrides]

    return run


@pytest.fixture
def posts(make_config):
    """The posts of test, in another order than their ids."""
    found = prepare_data(make_config()).posts("test")[::-1]
    return pa.table({"post_id": [p.post_id for p in found], "text": [p.text for p in found]})


def of_evaluation(directory, task):
    chosen = EvaluateConfig(checkpoint=str(directory), split="test")
    result = evaluate(chosen, task_name=task, explicit={})
    path = result.directory / "predictions" / "test.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("criteria", ("data.unit=post",)),
        ("criteria", ("data.unit=post", *ONE_PASS)),
        ("evidence", ()),
        ("evidence", ONE_PASS),
        ("joint", ("task.decoding=consistent",)),
        ("joint", ONE_PASS),
    ],
)
def test_a_prediction_has_the_bits_of_an_evaluation(trained, posts, task, settings):
    directory = trained(*settings, task=task)
    expected = {
        (line["post_id"], line["criterion_id"]): line for line in of_evaluation(directory, task)
    }
    rows = Scorer(directory)(posts).to_pylist()
    assert [(row["post_id"], row["criterion_id"]) for row in rows] == [
        (post_id, criterion_id) for post_id in posts["post_id"].to_pylist() for criterion_id in IDS
    ]
    for row in rows:
        line = expected[row.pop("post_id"), row.pop("criterion_id")]
        for name, value in row.items():
            if name == "evidence":
                line["evidence"] = (
                    [{k: s[k] for k in value[0]} for s in line["evidence"]] if value else []
                )
            assert value == line[name], name


def test_sentences_have_the_bits_of_an_evaluation_and_a_post_those_of_its_most_probable_one(
    trained, posts
):
    directory = trained("data.unit=sentence", "data.sentences=all")
    lines = of_evaluation(directory, "criteria")
    by_sentence = Scorer(directory, ScoringConfig(rows="sentence"))(posts).to_pylist()
    named = {
        f"{row['post_id']}/{row['start_char']}-{row['end_char']}/{row['criterion_id']}": row
        for row in by_sentence
    }
    assert len(named) == len(by_sentence) == len(lines)
    assert {line["example_id"]: line["probability"] for line in lines} == {
        name: row["probability"] for name, row in named.items()
    }
    for row in Scorer(directory)(posts).to_pylist():
        own = [
            other
            for other in by_sentence
            if all(other[name] == row[name] for name in ("post_id", "criterion_id"))
        ]
        assert row["probability"] == max(other["probability"] for other in own)
        assert row["decision"] == int(row["probability"] >= row["threshold"])
        met = [other for other in own if other["probability"] >= row["threshold"]]
        assert sorted((s["start_char"], s["score"]) for s in row["evidence"]) == sorted(
            (other["start_char"], other["probability"]) for other in met
        )


def test_the_rows_of_a_post_do_not_depend_on_the_others(trained, posts):
    scorer = Scorer(trained("data.unit=post"))
    whole = scorer(posts)
    alone = pa.concat_tables([scorer(posts.slice(at, 1)) for at in range(len(posts))])
    assert alone.equals(whole)
    assert scorer(posts.slice(0, 0)).equals(whole.slice(0, 0))
    assert whole.schema.equals(scorer.schema)


def test_threads_get_what_one_gets(trained, posts):
    scorer = Scorer(trained("data.unit=post"))
    alone = scorer(posts)
    with ThreadPoolExecutor(8) as pool:
        assert all(found.equals(alone) for found in pool.map(scorer, [posts] * 16))


def test_the_order_of_the_criteria_is_that_of_the_training_and_a_subset_changes_no_bit(
    trained, posts
):
    directory = trained("data.unit=post", *ONE_PASS)
    some = Scorer(directory, ScoringConfig(criteria=["A.9", "A.2"]))(posts)
    whole = Scorer(directory)(posts)
    kept = pa.compute.is_in(whole["criterion_id"], pa.array(["A.2", "A.9"]))
    assert some.equals(whole.filter(kept))


def test_a_given_threshold_decides(trained, posts):
    directory = trained("data.unit=post")
    middle = float(np.median(Scorer(directory)(posts)["probability"]))
    found = Scorer(directory, ScoringConfig(threshold={"A.2": middle}))(posts).to_pylist()
    own = [row for row in found if row["criterion_id"] == "A.2"]
    assert {row["threshold"] for row in own} == {middle}
    assert [row["decision"] for row in own] == [int(row["probability"] >= middle) for row in own]
    fitted = Scorer(directory)(posts).to_pylist()
    assert [row for row in found if row["criterion_id"] != "A.2"] == [
        row for row in fitted if row["criterion_id"] != "A.2"
    ]


def test_a_given_prevalence_shifts_the_calibrated_odds(trained, posts):
    scorer = Scorer(trained("data.unit=post"), ScoringConfig(prevalence=0.01))
    rows = [row for row in scorer(posts).to_pylist() if row["criterion_id"] == "A.1"]
    assert all(row["probability_at_prevalence"] < row["calibrated_probability"] for row in rows)
    for wrong in (0.0, 1.0, {"A.1": 1.0}):
        with pytest.raises(ConfigError, match=r"`prevalence"):
            validate(ScoringConfig, {"prevalence": wrong})
        with pytest.raises(ConfigError, match=r"`threshold"):
            validate(ScoringConfig, {"threshold": wrong})


def test_a_prevalence_without_effect_is_refused(trained, posts, tmp_path):
    options = ScoringConfig(prevalence=0.1)
    of_sentences = trained("data.unit=sentence", "data.sentences=annotated")
    with pytest.raises(ConfigError, match="`prevalence` has no effect"):  # whole posts have no rule
        Scorer(of_sentences, options)
    found = Scorer(of_sentences, options.model_copy(update={"rows": "sentence"}))(posts)
    assert found["probability_at_prevalence"].null_count < len(found)
    table = tmp_path / "criteria.csv"
    table.write_text("criterion_id,name,text\nX.1,Worry,The person worries.\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="`prevalence` has no effect"):
        Scorer(trained("data.unit=post"), options.model_copy(update={"criteria_file": str(table)}))


def test_the_shift_is_that_of_bayes_rule_on_counted_posts():
    # Of 1,000 posts with a prevalence of 0.3, a score is seen in 60 of 300 met and 35 of 700 others.
    shifted = at_prevalence(np.array([60 / 95]), fitted=np.array([0.3]), wanted=np.array([0.05]))
    # Of 1,000 posts with 50 met ones it is seen in 50 * 60 / 300 met and 950 * 35 / 700 others.
    assert shifted == pytest.approx([10 / (10 + 47.5)])


@pytest.mark.parametrize("vectors", ["encoded", "learned"])
def test_new_criteria_are_judged_where_the_architecture_allows(trained, posts, tmp_path, vectors):
    settings = ("data.unit=post", *ONE_PASS, f"model.criterion_vectors={vectors}")
    directory = trained(*settings)
    table = tmp_path / "criteria.csv"
    table.write_text("criterion_id,name,text\nX.1,Worry,The person worries.\n", encoding="utf-8")
    options = ScoringConfig(criteria_file=str(table), criteria=["X.1", "A.1"])
    if vectors == "learned":
        with pytest.raises(ConfigError, match="learned a vector for each criterion"):
            Scorer(directory, options)
        return
    found = Scorer(directory, options)(posts).to_pylist()
    assert [row["criterion_id"] for row in found[:2]] == ["A.1", "X.1"]
    assert found[1]["calibrated_probability"] is None
    own = [row for row in found if row["criterion_id"] == "A.1"]
    assert own == Scorer(directory, ScoringConfig(criteria=["A.1"]))(posts).to_pylist()


def test_text_is_in_the_output_on_request_alone(trained, posts):
    directory = trained("data.unit=post")
    assert "text" not in Scorer(directory).schema.names
    found = Scorer(directory, ScoringConfig(with_text=True, criteria=["A.1"]))(posts)
    assert found["text"].to_pylist() == posts["text"].to_pylist()


def test_options_that_do_not_fit_are_refused(trained, tmp_path):
    directory = trained("data.unit=post")
    with pytest.raises(ConfigError, match=r"also B\.1, B\.2"):
        Scorer(directory, ScoringConfig(criteria=["A.1", "B.1", "B.2"]))
    with pytest.raises(ConfigError, match="judges whole posts"):
        Scorer(directory, ScoringConfig(rows="sentence"))
    with pytest.raises(ConfigError, match=r"criteria that are predicted, but A\.77 are not"):
        Scorer(directory, ScoringConfig(threshold={"A.77": 0.5}))
    table = tmp_path / "criteria.csv"
    table.write_text("criterion_id,name,text\nA.1,Mood,Something else.\n", encoding="utf-8")
    with pytest.raises(DataError, match="another text than the model was trained with: A"):
        Scorer(directory, ScoringConfig(criteria_file=str(table)))
    with pytest.raises(CheckpointError, match="checkpoint"):
        Scorer(tmp_path / "nothing.pt")
    with pytest.raises(ConfigError, match="no probability"):
        Scorer(trained(task="evidence"), ScoringConfig(threshold=0.5))


def test_all_faults_of_the_posts_are_told_at_once_without_their_text(trained):
    scorer = Scorer(trained("data.unit=post"))
    ids, texts = ["a", "a", None, "d"], ["private words", "more", "more", " "]
    with pytest.raises(DataError) as error:
        scorer(pa.table({"post_id": ids, "text": pa.array(texts)}))
    message = str(error.value)
    assert "row 2: post_id must be unique" in message
    assert "row 3: post_id" in message
    assert "row 4: text" in message
    assert "private" not in message
    with pytest.raises(DataError, match="text"):
        scorer(pa.table({"post_id": ["a"]}))


def test_the_identity_changes_with_what_decides_the_output(trained):
    directory = trained("data.unit=post")
    one = Scorer(directory).identity
    assert one == Scorer(directory, overrides={"training.eval_batch_size": 2}).identity
    other = Scorer(directory, ScoringConfig(threshold=0.3)).identity
    assert other["checkpoint_sha256"] == one["checkpoint_sha256"]
    assert other["settings"] != one["settings"]
    assert pickle.loads(pickle.dumps(ScoringConfig(threshold=0.3))) == ScoringConfig(threshold=0.3)
