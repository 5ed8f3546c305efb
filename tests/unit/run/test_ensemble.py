"""Several checkpoints as one model: the mean of their probabilities."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from psy_agents_noaug import evaluate, load
from psy_agents_noaug.cli import main
from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.config.schema import ScoringConfig
from psy_agents_noaug.errors import CheckpointError, ConfigError
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.ensemble import fitted_rule, load_members
from psy_agents_noaug.run.scoring import Scorer
from psy_agents_noaug.run.train import train

SENTENCES = ("data.unit=sentence", "data.sentences=all", "task.thresholds=per_criterion")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, overrides_for):
    """Return a function from a name and settings to the directory of a run, trained once."""
    outputs = tmp_path_factory.mktemp("ensemble") / "outputs"

    def run(name, *settings, task="criteria"):
        directory = outputs / task / name
        if not directory.exists():
            own = [*overrides_for(outputs, task), f"run_name={name}", *settings]
            train(load_train_config(task, own))
        return directory

    return run


@pytest.fixture
def members(trained, tmp_path):
    """Copies of two runs on sentences, of other seeds and sizes of input, which a test may change."""
    settings = {"a": ("seed=1",), "b": ("seed=2", "model.max_length=64")}
    found = []
    for name, own in settings.items():
        copy = tmp_path / "outputs" / "criteria" / name
        shutil.copytree(trained(name, *SENTENCES, *own), copy)
        found.append(copy)
    return found


@pytest.fixture
def posts(make_config):
    found = prepare_data(make_config()).posts("test")
    return pa.table({"post_id": [p.post_id for p in found], "text": [p.text for p in found]})


def lines_of(directory, split="test"):
    text = (directory / "predictions" / f"{split}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_an_ensemble_of_one_has_the_models_own_figures_and_predictions_to_the_bit(members, posts):
    alone, one = evaluate(members[0], verbose=False), evaluate([members[0]], verbose=False)
    assert one.metrics == alone.metrics
    assert lines_of(one.directory) == lines_of(alone.directory)
    assert one.directory != alone.directory
    assert Scorer([members[0]])(posts).equals(Scorer(members[0])(posts))


def test_the_rule_of_one_is_that_of_its_checkpoint(members):
    (member,) = load_members([members[0]])
    evaluation = Scorer(members[0])._evaluation
    assert fitted_rule([member], evaluation) == member.checkpoint.decision_rule
    assert "posts" in member.checkpoint.decision_rule


@pytest.mark.slow
def test_probabilities_are_the_means_of_the_members(members):
    result = evaluate(members, verbose=False)
    own = [
        [line["probability"] for line in lines_of(evaluate(member, verbose=False).directory)]
        for member in members
    ]
    together = [line["probability"] for line in lines_of(result.directory)]
    assert together == pytest.approx(np.mean(own, axis=0), abs=1e-12)
    assert result.metrics["test/n_members"] == 2
    assert not any(key.startswith("test/n_windows") for key in result.metrics)


def test_predict_has_the_bits_of_the_evaluation(members, posts):
    lines = {
        line["example_id"]: line for line in lines_of(evaluate(members, verbose=False).directory)
    }
    rows = Scorer(members[::-1], ScoringConfig(rows="sentence"))(posts).to_pylist()
    assert len(rows) == len(lines)
    for row in rows:
        span = f"{row.pop('start_char')}-{row.pop('end_char')}"
        line = lines[f"{row['post_id']}/{span}/{row['criterion_id']}"]
        assert {name: line[name] for name in row} == row


@pytest.mark.slow
def test_thresholds_and_calibration_are_fitted_on_the_mean_of_val(members):
    """What an evaluation of val itself predicts has the same pairs, and gives the same rule."""
    loaded = load_members(members)
    evaluation = Scorer(members[0])._evaluation
    rule = fitted_rule(loaded, evaluation)
    values = evaluation.values_of_lines(lines_of(evaluate(members, split="val").directory, "val"))
    again = evaluation.rule_of_lines(lines_of(members[0], "val"), values, like=rule)
    assert again["thresholds"] == pytest.approx(rule["thresholds"], abs=1e-6)
    own = [member.checkpoint.decision_rule["thresholds"] for member in loaded]
    assert rule["thresholds"] not in own


@pytest.mark.slow
def test_the_evaluation_is_recorded_for_every_member(members):
    before = [len(lines_in(member)) for member in members]
    result = evaluate(members, verbose=False)
    assert [len(lines_in(member)) for member in members] == [n + 1 for n in before]
    assert len(lines_in(result.directory)) == 1
    for member in members:
        line = lines_in(member)[-1]
        assert line["split"] == "test"
        assert line["ensemble_sha256"] == lines_in(result.directory)[0]["weights_sha256"]


def lines_in(directory: Path) -> list[dict]:
    path = directory / "evaluations.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_all_that_keeps_checkpoints_from_being_an_ensemble_is_in_one_message(members, trained):
    others = [
        members[0],
        members[0],
        trained("posts", "data.unit=post", SENTENCES[2]),
        trained("global", *SENTENCES[:2], "task.thresholds=global"),
        members[0].with_name("absent"),
        trained("joint", task="joint"),
    ]
    with pytest.raises(CheckpointError) as caught:
        load_members(others)
    told = str(caught.value)
    for part in (
        "holds the same weights as",
        "has another `data.unit` than",
        "has another `task.thresholds` than",
        "There is no checkpoint at",
        "has another task than",
    ):
        assert part in told
    assert told.count("\n") == 8  # the task joint differs in four ways


@pytest.mark.slow
def test_without_predictions_of_one_val_a_threshold_must_be_given(members, trained, posts):
    (members[0] / "predictions" / "val.jsonl").unlink()
    other = trained("divided", *SENTENCES, "data.splits=null", "data.split_seed=5")
    manifest = members[1] / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "weights_sha256": "0"}))
    given = [*members, other]
    with pytest.raises(CheckpointError) as caught:
        Scorer(given)
    told = str(caught.value)
    for part in (
        f"psy-agents eval checkpoint={members[0]} split=val writes it",
        "is not the best checkpoint of a finished run",
        "Give `threshold`",
    ):
        assert part in told
    with pytest.raises(CheckpointError, match="another corpus, or another division of it"):
        Scorer([trained("a"), other])
    table = Scorer(given, ScoringConfig(threshold=0.4))(posts)
    assert "calibrated_probability" not in table.column_names
    assert set(table["threshold"].to_pylist()) == {0.4}
    with pytest.raises(ConfigError, match="give `threshold` for"):
        Scorer(given, ScoringConfig(threshold={"A.1": 0.4}))


@pytest.mark.slow
def test_an_evaluation_without_predictions_of_one_val_is_refused_and_not_recorded(members):
    path = members[1] / "predictions" / "val.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    before = [lines_in(member) for member in members]
    with pytest.raises(CheckpointError, match="other pairs or labels in val"):
        evaluate(members, verbose=False)
    assert [lines_in(member) for member in members] == before


def test_damaged_predictions_of_val_are_refused_without_being_quoted(members):
    (members[0] / "predictions" / "val.jsonl").write_text('{"probability": 0.5, "sec')
    with pytest.raises(CheckpointError, match=r"is damaged: psy-agents eval") as caught:
        Scorer(members)
    assert "sec" not in str(caught.value).replace("section", "")


@pytest.mark.slow
def test_the_identity_of_an_ensemble_has_all_members_and_its_rule(members):
    identity = Scorer(members).identity
    assert identity == Scorer(members[::-1]).identity
    assert len(set(identity["weights_sha256"].split())) == 2
    settings = json.loads(identity["settings"])
    assert [own["max_length"] for own in settings["members"]].count(64) == 1
    assert "decision_rule" in settings


@pytest.mark.slow
def test_the_commands_take_a_list(members, tmp_path, capsys, own_logging):
    chosen = f"checkpoint=[{','.join(map(str, members))}]"
    assert main(["eval", chosen]) == 0
    assert "ensemble-" in capsys.readouterr().out
    posts = tmp_path / "posts.csv"
    posts.write_text("post_id,text\n1,I wake at three every night.\n")
    output = tmp_path / "predictions.jsonl"
    assert main(["predict", chosen, f"data.posts={posts}", f"output={output}"]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    predicted = load(members, verbose=False).predict(["I wake at three every night."])
    assert [row["probability"] for row in rows] == predicted["probability"].tolist()
    assert main(["predict", "checkpoint=[]", f"data.posts={posts}"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "settings"),
    [("evidence", ()), ("joint", ()), ("joint", ("model.architecture=label_attention",))],
)
def test_scores_of_tokens_are_averaged_and_predict_has_the_bits_of_the_evaluation(
    trained, posts, tmp_path, task, settings
):
    """The rule is fitted by an evaluation, and kept for predictions of posts without labels."""
    given = []
    for seed in (1, 2):
        copy = tmp_path / "outputs" / task / f"{seed}"
        shutil.copytree(
            trained(f"{seed}-{len(settings)}", f"seed={seed}", *settings, task=task), copy
        )
        given.append(copy)
    with pytest.raises(CheckpointError, match=r"must be fitted on val first.*split=val"):
        Scorer(given)
    result = evaluate(given, verbose=False)
    assert result.metrics["test/n_members"] == 2
    assert [len(lines_in(member)) for member in given] == [1, 1]
    lines = {line["example_id"]: line for line in lines_of(result.directory)}
    rows = Scorer(given[::-1])(posts).to_pylist()
    for row in rows:
        line = lines.get(f"{row['post_id']}/{row['criterion_id']}")
        if line is None:  # evidence that is not known is not evaluated
            continue
        for span in line["evidence"]:
            del span["right"]
        assert {name: line[name] for name in row} == row
    if task == "joint":
        own = [lines_of(evaluate(member, verbose=False).directory) for member in given]
        for one, other in zip(*own, strict=True):
            mean = (one["probability"] + other["probability"]) / 2
            assert lines[one["example_id"]]["probability"] == pytest.approx(mean, abs=1e-6)
    # An ensemble of one is its model, without any rule of its own.
    alone = evaluate(given[0], verbose=False).metrics
    assert evaluate([given[0]], verbose=False).metrics == alone
    (kept,) = (tmp_path / "outputs" / task).glob("ensemble-*/decision_rule.json")
    # Models that read otherwise than in training decide nothing of later predictions.
    rule = kept.read_bytes()
    evaluate(given, {"model.max_length": 64}, verbose=False)
    assert kept.read_bytes() == rule
    kept.write_text("{}")
    with pytest.raises(CheckpointError, match="is damaged, or of another ensemble"):
        Scorer(given)


@pytest.mark.slow
def test_scores_of_tokens_of_other_windows_have_no_mean(trained):
    others = ("seed=3", "model.max_length=64")
    given = [trained("1-0", "seed=1", task="joint"), trained("short", *others, task="joint")]
    with pytest.raises(CheckpointError, match=r"has another `model.max_length` than"):
        load_members(given)
