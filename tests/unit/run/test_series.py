"""Cross-validation and several seeds: what is trained, pooled, gone on with and refused."""

import csv
import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from psy_agents_noaug import cross_validate
from psy_agents_noaug.config.series import load_series_config
from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.metrics.tables import with_interval
from psy_agents_noaug.report.errors import write_errors_page
from psy_agents_noaug.report.series_facts import series_facts
from psy_agents_noaug.report.series_report import series_sections
from psy_agents_noaug.report.write import write_report
from psy_agents_noaug.run.evaluate import RunResult
from psy_agents_noaug.run.series.plan import open_series
from psy_agents_noaug.run.series.recorded import read_series
from psy_agents_noaug.run.series.report import without_doubtful_intervals
from psy_agents_noaug.run.series.work import run_series

Overrides = list[str]
SEEDS = (1, 2)
CANARY = "xylozephyrquill"  # in posts of the tiny corpus


def run(kind: Any, overrides: Overrides, task: str = "criteria") -> RunResult:
    settings, config = load_series_config(kind, task, overrides)
    result = run_series(kind, settings, config, overrides=overrides)
    assert result is not None
    return result


def without(overrides: Overrides, *keys: str) -> Overrides:
    return [item for item in overrides if not item.startswith(keys)]


@pytest.fixture(scope="module")
def command(
    overrides_for: Callable[..., Overrides], tmp_path_factory: pytest.TempPathFactory
) -> Overrides:
    out = tmp_path_factory.mktemp("cv") / "outputs"
    own = ["folds=2", "seeds=[1,2]", "training.epochs=1", "run_name=tiny"]
    own.append("data.split_fractions=[0.5,0.25,0.25]")  # 5 posts of val
    return [*without(overrides_for(out), "data.splits", "training.epochs"), *own]


@pytest.fixture(scope="module")
def crossed(command: Overrides) -> RunResult:
    return run("cv", command)


def lines_of(result: RunResult) -> list[dict[str, Any]]:
    path = result.directory / "predictions" / "out_of_fold.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_every_post_is_predicted_once_per_seed_by_a_run_that_did_not_see_it(crossed: RunResult):
    lines = lines_of(crossed)
    assert {line["seed"] for line in lines} == set(SEEDS)
    folds = json.loads((crossed.directory / "folds.json").read_text())["folds"]
    for seed in SEEDS:
        pairs = [(ln["post_id"], ln["criterion_id"]) for ln in lines if ln["seed"] == seed]
        assert len(pairs) == len(set(pairs)) == 30 * 9
    for line in lines:
        assert line["post_id"] in folds[line["fold"] - 1]
    for number, fold in enumerate(folds, start=1):
        own = crossed.directory / f"fold-{number}-seed-1"
        splits = json.loads((own / "splits.json").read_text())
        assert splits["test"] == fold
        assert not set(fold) & {*splits["train"], *splits["val"]}


@pytest.mark.slow
def test_f1_is_of_the_decisions_of_all_folds_and_auroc_is_not_pooled(crossed: RunResult):
    lines = lines_of(crossed)
    expected = []
    for seed in SEEDS:
        own = [line for line in lines if line["seed"] == seed and line["criterion_id"] == "A.2"]
        tp = sum(line["label"] and line["decision"] for line in own)
        wrong = sum(line["label"] != line["decision"] for line in own)
        expected.append(2 * tp / (2 * tp + wrong))
    assert crossed.metrics["cv/per_criterion/A.2/f1"] == pytest.approx(sum(expected) / 2)
    runs = [
        json.loads((crossed.directory / f"fold-{fold}-seed-1" / "metrics.json").read_text())
        for fold in (1, 2)
    ]
    values = [
        (r["test/per_criterion/A.2/auroc"], r["test/per_criterion/A.2/n_positive"]) for r in runs
    ]
    weighted = sum(auroc * n for auroc, n in values) / sum(n for _, n in values)
    lines_of_one = [line for line in lines if line["seed"] == 1]
    assert weighted == pytest.approx(_auroc_of_folds(lines_of_one, "A.2"))


def _auroc_of_folds(lines: list[dict[str, Any]], criterion: str) -> float:
    """The share of unmet pairs below each met pair of the same fold, in the mean over met pairs."""
    shares = []
    own = [line for line in lines if line["criterion_id"] == criterion]
    for met in (line for line in own if line["label"]):
        unmet = [x["probability"] for x in own if not x["label"] and x["fold"] == met["fold"]]
        below = sum((met["probability"] > u) + (met["probability"] == u) / 2 for u in unmet)
        shares.append(below / len(unmet))
    return sum(shares) / len(shares)


@pytest.mark.slow
def test_spread_and_baseline_are_reported_and_the_files_are_those_of_a_run(crossed: RunResult):
    metrics = crossed.metrics
    assert (metrics["cv/n_folds"], metrics["cv/n_seeds"], metrics["cv/n_runs"]) == (2, 2, 4)
    for key in ("mean_of_runs", "sd_over_folds", "sd_over_seeds"):
        assert f"cv/{key}/f1_macro" in metrics
    assert "cv/baseline_tfidf_lr/f1_macro" in metrics
    assert "cv/baseline_tfidf_lr/f1_macro_gain_ci_low" in metrics
    # The few met pairs of a fold are ranked too well.
    assert metrics["cv/per_criterion/A.1/average_precision"] is not None
    assert metrics["cv/per_criterion/A.1/average_precision_ci_low"] is None
    assert "a fold has fewer" in metrics["cv/average_precision_macro_ci_high_undefined"]
    assert json.loads((crossed.directory / "metrics.json").read_text()) == metrics
    manifest = json.loads((crossed.directory / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert len(manifest["runs"]) == 4
    assert all(manifest["runs"].values())
    assert "TF-IDF + LR" in crossed.summary
    assert "sd over seeds" in crossed.summary
    assert set(crossed.table.columns) >= {"f1_macro", "f1"}
    # The last checkpoint is for going on, the best one to predict with.
    for folder in crossed.directory.glob("fold-*"):
        assert [p.name for p in (folder / "checkpoints").iterdir()] == ["best_checkpoint.pt"]


@pytest.fixture(scope="module")
def reported(crossed: RunResult) -> str:
    """What a reader sees of the report of the cross-validation."""
    write_report(crossed.directory)
    page = (crossed.directory / "report.html").read_text(encoding="utf-8")
    body = page[page.index("<body>") : page.index("<script>")]
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


@pytest.mark.slow
def test_the_report_begins_with_the_pooled_figure_and_has_each_run(
    crossed: RunResult, reported: str
):
    shown = with_interval(crossed.metrics, "cv/f1_macro")
    answer = reported[reported.index("The answer Over") :]
    assert answer.startswith(
        f"The answer Over 2 folds and 2 seeds the macro-F1 is {shown} (30 posts"
    )
    assert "alone: the spread over seeds needs 3 seeds or more" in answer
    for fold, seed in ((1, 1), (2, 1), (1, 2), (2, 2)):
        run = f"fold-{fold}-seed-{seed}"
        own = json.loads((crossed.directory / run / "metrics.json").read_text())
        row = answer[answer.index(f" {run} ") :][:200]
        assert with_interval(own, "test/f1_macro") in row
    assert CANARY not in reported


@pytest.mark.slow
def test_the_confusion_of_the_report_counts_the_decisions_of_all_seeds(
    crossed: RunResult, reported: str
):
    with (crossed.directory / "tables/confusion_cv.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["criterion"] == "A.2")
    own = [line for line in lines_of(crossed) if line["criterion_id"] == "A.2"]
    assert int(row["found"]) == sum(line["label"] and line["decision"] for line in own)
    assert int(row["false alarms"]) == sum(line["decision"] > line["label"] for line in own)
    assert sum(int(row[key]) for key in ("found", "missed", "false alarms", "rightly unmet")) == 60


@pytest.mark.slow
def test_a_run_whose_files_are_lost_is_said_and_the_rest_is_reported(
    crossed: RunResult, tmp_path: Path
):
    folder = shutil.copytree(crossed.directory, tmp_path / "cv-tiny")
    (folder / "fold-2-seed-1/predictions/test.jsonl").unlink()
    facts = series_facts(read_series(folder))
    assert "test.jsonl" in facts.pooled.faults[0]
    titles = [section.title for section in series_sections(facts)]
    assert "By criterion" in titles
    assert "Calibration" not in titles


@pytest.mark.slow
def test_label_errors_are_ranked_by_predictions_out_of_fold(crossed: RunResult):
    page = write_errors_page(crossed.directory).read_text(encoding="utf-8")
    (content,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    data = json.loads(content)
    columns = data["columns"]
    assert data["splits"] == ["out of fold"]
    assert data["n"] == len(columns["quality"]) == len(lines_of(crossed))
    qualities: dict[Any, set[float]] = {}
    for key in zip(columns["post"], columns["criterion"], columns["quality"], strict=True):
        qualities.setdefault(key[:2], set()).add(key[2])
    assert all(len(own) == 1 for own in qualities.values())  # the mean over seeds
    assert CANARY in page
    (crossed.directory / "errors.html").unlink()


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_and_says_the_same(
    crossed: RunResult, command: Overrides, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("psy_agents_noaug.run.series.work.train", pytest.fail)
    monkeypatch.setattr("psy_agents_noaug.run.series.work.evaluate", pytest.fail)
    again = run("cv", command)
    assert (again.metrics, again.summary) == (crossed.metrics, crossed.summary)


@pytest.mark.slow
def test_from_python_it_is_the_same_cross_validation(crossed: RunResult, command: Overrides):
    own = without(command, "folds=", "seeds=")
    again = cross_validate(own, folds=2, seeds=SEEDS, verbose=False)
    assert (again.directory, again.metrics) == (crossed.directory, crossed.metrics)


@pytest.mark.slow
def test_other_settings_in_the_same_directory_are_refused_with_all_differences(
    crossed: RunResult, command: Overrides
):
    changed = [*without(command, "seeds="), "seeds=[1,3]", "training.learning_rate=0.5"]
    with pytest.raises(ConfigError) as error:
        run("cv", changed)
    assert "`seeds` was [1, 2], but is [1, 3] now" in str(error.value)
    assert "`training.learning_rate` was 0.001, but is 0.5 now" in str(error.value)


@pytest.mark.slow
def test_the_folds_of_a_file_are_those_of_its_cross_validation(
    crossed: RunResult, command: Overrides
):
    file = crossed.directory / "folds.json"
    other = [*without(command, "folds=", "run_name="), f"folds={file}", "run_name=again"]
    settings, config = load_series_config("cv", "criteria", other)
    series = open_series("cv", settings, config)
    content = json.loads(file.read_text())
    assert series.folds is not None
    assert [list(fold) for fold in series.folds.members] == content["folds"]
    assert (
        json.loads((series.directory.path / "folds.json").read_text())["folds"] == content["folds"]
    )


@pytest.mark.slow
def test_a_damaged_plan_is_told_and_not_written_over(crossed: RunResult, command: Overrides):
    plan = crossed.directory / "plan.json"
    content = plan.read_text()
    plan.write_text("[]")
    with pytest.raises(DataError, match=r"plan\.json is damaged"):
        run("cv", command)
    assert plan.read_text() == "[]"
    plan.write_text(content)


def test_a_plan_of_which_nothing_was_trained_gives_way_to_another(command: Overrides):
    for learning_rate in ("0.1", "0.2"):
        changed = [*command, "run_name=new", f"training.learning_rate={learning_rate}"]
        settings, config = load_series_config("cv", "criteria", changed)
        open_series("cv", settings, config)
    (plan,) = Path(config.output_dir).glob("criteria/*new*/plan.json")
    recorded = plan.read_text()
    assert re.search(r"learning_rate\W+0\.2\b", recorded)
    assert not re.search(r"learning_rate\W+0\.1\b", recorded)


def test_folds_from_which_nothing_can_be_learned_are_named_before_anything_is_trained(
    command: Overrides,
):
    others = [*command, "folds=9", "run_name=many", "data.split_fractions=[0.9,0.05,0.05]"]
    with pytest.raises(DataError, match=r"fold \d: no post of val meets") as error:
        open_series("cv", *load_series_config("cv", "criteria", others))
    assert str(error.value).count("no post of") > 1


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        ("cv", ["seeds=[1,1]"], "must differ"),
        ("cv", ["seeds=[1,2]", "seed=3", "resume=dir", "data.splits=x"], "`resume`"),
        ("cv", ["folds=1"], "folds"),
        ("train", ["workers=2"], "seeds=[1,2,3]"),
        ("train", ["seeds=[1]", "folds=5"], "refit=train+val too"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(kind: Any, settings: Overrides, told: str):
    with pytest.raises(ConfigError) as error:
        load_series_config(kind, "criteria", settings)
    assert told in str(error.value)


@pytest.mark.slow
def test_several_seeds_on_one_division_are_ordinary_runs_that_never_see_test(
    overrides: Overrides, tmp_path: Path
):
    result = run("train", [*overrides, "seeds=[3,4]", "training.epochs=1"])
    assert result.directory == tmp_path / "outputs/criteria/seeds-redsm5"
    runs = [result.directory / f"seed-{seed}" for seed in (3, 4)]
    values = []
    for folder in runs:
        metrics = json.loads((folder / "metrics.json").read_text())
        assert not [key for key in metrics if key.startswith("test/")]
        values.append(metrics["val/f1_macro"])
    assert result.metrics["val/f1_macro"] == pytest.approx(sum(values) / 2)
    assert result.metrics["val/per_seed/4/f1_macro"] == pytest.approx(values[1])
    write_report(result.directory)
    page = (result.directory / "report.html").read_text(encoding="utf-8")
    assert "On val, over 2 seeds the macro-F1 is" in page
    assert "these figures are too good" in page
    assert "Calibration</h2>" not in page
    (runs[0] / "predictions/val.jsonl").unlink()
    assert run("train", [*overrides, "seeds=[3,4]", "training.epochs=1"]).metrics == result.metrics
    # A series is none of the runs that `resume=auto` and `checkpoints` are about.
    assert not (tmp_path / "outputs/checkpoints").exists()
    assert not (result.directory / "config.yaml").exists()


@pytest.mark.slow
def test_sentences_have_figures_of_whole_posts_and_one_mlflow_run_shows_all_others(
    command: Overrides, tmp_path: Path
):
    own = without(command, "output_dir", "seeds=", "run_name=", "tracking=")
    own += [f"output_dir={tmp_path}", "seeds=[1]", "data.unit=sentence", "data.sentences=all"]
    result = run("cv", [*own, "run_name=whole"])
    for key in (
        "per_post/f1_macro",
        "per_post/n_met_mae",
        "baseline_tfidf_lr/per_post/f1_macro_gain",
    ):
        assert f"cv/{key}_ci_low" in result.metrics
    assert result.metrics["cv/per_post/n_pairs"] == 30 * 9
    assert "model on whole posts, by their most probable sentence: macro-F1" in result.summary
    found = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["1"])
    (parent,) = [one for one in found if "mlflow.parentRunId" not in one.data.tags]
    assert parent.info.run_name == "cv-whole"
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["cv/f1_macro"] == result.metrics["cv/f1_macro"]
    below = [one for one in found if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(one.info.run_name for one in below) == [
        "cv-whole/fold-1-seed-1",
        "cv-whole/fold-2-seed-1",
    ]
    again = run("cv", [*own, "run_name=whole"])
    assert again.metrics == result.metrics
    assert len(MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["1"])) == len(found)


def test_the_average_precision_of_posts_has_an_interval_only_if_enough_posts_are_met():
    low = "per_criterion/A.1/average_precision_ci_low"
    figures = {"per_criterion/A.1/n_positive": 60, low: 0.5}
    of_posts = {f"per_post/{key}": value for key, value in figures.items()}
    of_posts["per_post/per_criterion/A.1/n_positive"] = 20  # of three met sentences each
    found = without_doubtful_intervals({**figures, **of_posts}, n_folds=3)
    assert found.keys() == {f"per_post/{low}", f"per_post/{low}_undefined"}
