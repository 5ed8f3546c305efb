"""The criteria scripts as a user runs them: files, figures, signals, tracking, exit codes."""

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.loading import validate_train_config
from psy_agents_noaug.tasks.criteria.task import CriteriaTask
from psy_agents_noaug.training.checkpoint import load_checkpoint, weights_sha256

REPOSITORY = Path(__file__).parents[2]
TRACKED = ("tracking=mlflow", "tracking.system_metrics=false")
FILES = {
    ".lock",
    "alignment.json",
    "checkpoints/best_checkpoint.pt",
    "checkpoints/last_checkpoint.pt",
    "config.yaml",
    "history.csv",
    "manifest.json",
    "metrics.json",
    "predictions/val.baseline_tfidf_lr.jsonl",
    "predictions/val.jsonl",
    "seen_posts.key",
    "splits.json",
}
PREDICTION_KEYS = {
    "example_id",
    "post_id",
    "group_id",
    "criterion_id",
    "label",
    "probability",
    "calibrated_probability",
    "decision",
    "threshold",
}
# MLflow's own use of SQLAlchemy; its first SQLite store warns once per process.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(scope="module")
def trained(
    overrides_for: Callable[[Path], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> subprocess.CompletedProcess[str]:
    """One tracked training by the script; what it wrote is in `output_dir`."""
    output_dir = tmp_path_factory.getbasetemp() / "scripts"
    script = str(REPOSITORY / "scripts" / "train_criteria.py")
    command = [sys.executable, script, *overrides_for(output_dir), *TRACKED]
    done = subprocess.run(
        [*command, "run_name=one", "seed=7"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def output_dir(
    trained: subprocess.CompletedProcess[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return tmp_path_factory.getbasetemp() / "scripts"


@pytest.fixture(scope="module")
def run_dir(output_dir: Path) -> Path:
    return output_dir / "criteria" / "one"


@pytest.fixture(scope="module")
def best(output_dir: Path) -> str:
    return str(output_dir / "checkpoints" / "best_checkpoint.pt")


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def read_json(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tracked_runs(output_dir: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{output_dir}/mlflow.db")
    experiment = client.get_experiment_by_name("psy_agents_noaug/criteria")
    return client.search_runs([experiment.experiment_id])


# The tests down to the evaluations look at one training; the evaluations add to its directory.


def test_training_leaves_exactly_the_files_of_the_design(run_dir: Path) -> None:
    assert files_of(run_dir) == FILES


def test_training_says_where_the_run_is_and_how_it_compares(
    trained: subprocess.CompletedProcess[str], run_dir: Path
) -> None:
    assert trained.stdout.endswith(f"run directory: {run_dir}\n")
    assert "TF-IDF + LR" in trained.stdout
    assert "Traceback" not in trained.stderr
    # The tiny corpus repeats its sentences, and has few posts.
    known = ("has no positive pair", "in different splits", "fewer than 20")
    warnings = [line for line in trained.stderr.splitlines() if line.startswith("WARNING")]
    assert all(any(part in line for part in known) for line in warnings), warnings


def test_the_latest_checkpoints_are_found_through_a_link(output_dir: Path, run_dir: Path) -> None:
    assert (output_dir / "checkpoints").is_symlink()
    assert (output_dir / "checkpoints").resolve() == (run_dir / "checkpoints").resolve()


def test_training_reports_val_and_nothing_of_test(run_dir: Path) -> None:
    metrics = read_json(run_dir / "metrics.json")
    assert {key.split("/")[0] for key in metrics} == {"val"}
    assert {"val/f1_macro", "val/f1_macro_ci_low", "val/per_criterion/A.1/f1"} <= set(metrics)
    assert "val/baseline_tfidf_lr/f1_macro" in metrics


def test_the_history_has_a_row_per_evaluation(run_dir: Path) -> None:
    rows = list(csv.DictReader((run_dir / "history.csv").read_text().splitlines()))
    assert [float(row["epoch"]) for row in rows] == [1.0, 2.0]
    assert all(float(row["train/loss"]) > 0 for row in rows)


def test_the_manifest_names_the_weights_and_the_data(run_dir: Path, best: str) -> None:
    manifest = read_json(run_dir / "manifest.json")
    weights = load_checkpoint(Path(best), task="criteria").weights
    assert manifest["status"] == "finished"
    assert manifest["weights_sha256"] == weights_sha256(weights)
    fingerprints = load_checkpoint(Path(best), task="criteria").metadata["fingerprints"]
    assert fingerprints.keys() == {"corpus", "splits"}
    assert manifest["data"] == {
        "name": "redsm5",
        "splits_origin": "given: splits.json",
        **fingerprints,
    }


def test_the_run_records_the_division_that_it_was_given(run_dir: Path, tiny_corpus: Path) -> None:
    given, written = (read_json(folder / "splits.json") for folder in (tiny_corpus, run_dir))
    assert {name: written[name] for name in given} == given


def test_the_resolved_configuration_has_the_command_line_in_it(run_dir: Path) -> None:
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["seed"] == 7
    assert config["training"]["learning_rate"] == 0.001
    assert validate_train_config(config).model_dump() == config


def test_a_tracked_run_is_finished_with_params_metrics_and_artifacts(
    output_dir: Path, run_dir: Path
) -> None:
    (run,) = [run for run in tracked_runs(output_dir) if run.info.run_name == "one"]
    recorded = read_json(run_dir / "metrics.json")
    assert run.info.status == "FINISHED"
    assert run.data.params["training.learning_rate"] == "0.001"
    assert run.data.params["seed"] == "7"
    numbers = {key: value for key, value in recorded.items() if isinstance(value, int | float)}
    # What differs from the recorded value by rounding alone is not sent again.
    assert {key: run.data.metrics[key] for key in numbers} == pytest.approx(numbers, rel=1e-12)
    assert run.data.metrics["train/loss"] > 0
    assert run.data.tags["data.corpus"] == read_json(run_dir / "manifest.json")["data"]["corpus"]
    assert files_of(Path(run.info.artifact_uri.removeprefix("file://"))) == {
        "alignment.json",
        "config.yaml",
        "history.csv",
        "manifest.json",
        "metrics.json",
        "splits.json",
        "val.jsonl",
    }


def test_prediction_lines_hold_the_documented_keys_and_a_decision_that_follows(
    run_dir: Path,
) -> None:
    lines = read_lines(run_dir / "predictions" / "val.jsonl")
    assert len(lines) == 8 * 9
    for line in lines:
        assert line.keys() == PREDICTION_KEYS
        assert line["decision"] == int(line["probability"] >= line["threshold"])
        assert all(" " not in value for value in line.values() if isinstance(value, str))
    assert {line["label"] for line in lines} == {0, 1}


def test_evaluating_val_again_gives_the_figures_of_the_training_to_the_last_bit(
    run_dir: Path, best: str, start_script: Callable[..., Any]
) -> None:
    paths = (run_dir / "metrics.json", run_dir / "predictions" / "val.jsonl")
    before = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    done = start_script(
        "eval_criteria.py", f"checkpoint={best}", "split=val", "tracking=none"
    ).wait()
    assert done.returncode == 0, done.stderr
    assert [path.read_bytes() for path in paths] == before
    assert read_lines(run_dir / "evaluations.jsonl")[-1]["split"] == "val"


def test_evaluation_judges_test_by_default_and_counts_the_looks(
    run_dir: Path,
    best: str,
    output_dir: Path,
    start_script: Callable[..., Any],
    own_logging: None,
    capsys: pytest.CaptureFixture,
) -> None:
    record = run_dir / "evaluations.jsonl"
    looks_before = read_lines(record) if record.exists() else []
    before = read_json(run_dir / "metrics.json")
    done = start_script("eval_criteria.py", f"checkpoint={best}").wait()
    assert done.returncode == 0, done.stderr
    assert "This is evaluation 1 of test" in done.stderr
    after = read_json(run_dir / "metrics.json")
    assert {key: value for key, value in after.items() if key.startswith("val/")} == before
    assert {key.replace("test/", "val/") for key in after if key.startswith("test/")} >= {
        "val/f1_macro",
        "val/baseline_majority/f1_macro",
        "val/per_criterion/A.1/f1",
    }
    lines = read_lines(run_dir / "predictions" / "test.jsonl")
    assert {line["post_id"] for line in lines} == {f"p{number}" for number in range(22, 30)}
    assert all(line.keys() == PREDICTION_KEYS for line in lines)

    assert main(["eval", "task=criteria", f"checkpoint={best}", "tracking=none"]) == 0
    assert "This is evaluation 2 of test" in capsys.readouterr().err
    assert read_json(run_dir / "metrics.json") == after
    looks = read_lines(record)[len(looks_before) :]
    assert [look["split"] for look in looks] == ["test", "test"]
    assert {look["weights_sha256"] for look in looks} == {
        read_json(run_dir / "manifest.json")["weights_sha256"]
    }
    assert files_of(run_dir) == FILES | {
        "evaluations.jsonl",
        "predictions/test.baseline_tfidf_lr.jsonl",
        "predictions/test.jsonl",
    }
    statuses = {run.info.run_name: run.info.status for run in tracked_runs(output_dir)}
    assert statuses == {"one": "FINISHED", "one-test": "FINISHED"}


@pytest.mark.slow
def test_what_only_an_evaluation_needs_is_imported_when_it_comes_to_that(
    overrides: list[str],
) -> None:
    settings = [*overrides, "training.max_steps=1"]
    program = (
        "import sys\n"
        "from psy_agents_noaug.run.train import train\n"
        "from psy_agents_noaug.config.loading import load_train_config\n"
        "from psy_agents_noaug.training.trainer import Trainer\n"
        "def evaluate(trainer, signals):\n"
        "    late = {'datasets', 'matplotlib', 'mlflow', 'optuna', 'sklearn'}\n"
        "    print(late & set(sys.modules), 'at the evaluation')\n"
        "    sys.exit()\n"
        "Trainer._evaluate = evaluate\n"
        f"train(load_train_config('criteria', {settings!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "set() at the evaluation\n"


def test_help_lists_groups_and_keys_without_loading_a_framework() -> None:
    program = (
        "import runpy, sys, time\n"
        f"sys.argv = [{str(REPOSITORY / 'scripts' / 'train_criteria.py')!r}, '--help', 'seed=5']\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    heavy = {'torch', 'transformers', 'pandas', 'mlflow', 'sklearn'} & set(sys.modules)\n"
        "    print(end.code, sorted(heavy), time.process_time() < 2, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.strip() == "0 [] True"
    for group in ("data: imported, redsm5, redsm5_hub, sample, tables", "tracking: mlflow, none"):
        assert group in done.stdout
    keys = yaml.safe_load(done.stdout.partition("keys and their values")[2].partition(":\n")[2])
    assert keys["seed"] == 5
    assert keys["training"]["learning_rate"] == 2e-4
    assert "resume" in keys


def test_best_config_takes_nested_and_dotted_keys_and_the_command_line_wins(
    overrides: list[str], tmp_path: Path, own_logging: None
) -> None:
    best_config = tmp_path / "best.yaml"
    best_config.write_text(
        "training:\n  weight_decay: 0.07\n  max_steps: 5\n  scheduler: 'cosine'\n"
        "model.pooling: mean\ntask:\n  class_weights: [1.0, 2.5]\nseed: 11\n"
    )
    argv = [*overrides, "run_name=best", f"best_config={best_config}", "training.max_steps=1"]
    assert main(["train", "task=criteria", *argv]) == 0
    config = yaml.safe_load(
        (tmp_path / "outputs" / "criteria" / "best" / "config.yaml").read_text()
    )
    assert config["training"]["max_steps"] == 1
    assert config["training"]["weight_decay"] == 0.07
    assert config["training"]["scheduler"] == "cosine"
    assert config["training"]["learning_rate"] == 0.001
    assert config["model"]["pooling"] == "mean"
    assert config["task"]["class_weights"] == [1.0, 2.5]
    assert config["seed"] == 11


@pytest.mark.slow
@pytest.mark.faults("SIGTERM, Ctrl-C", "state saved, exit 143 or 130; goes on to the end")
def test_signals_stop_a_run_after_a_checkpoint_and_it_goes_on_to_the_end(
    overrides: list[str], tmp_path: Path, start_script: Callable[..., Any], own_logging: None
) -> None:
    output_dir = tmp_path / "outputs"
    run_dir = output_dir / "criteria" / "long"
    # Evaluated at the end alone, so that the signals come between updates.
    long = [
        *(item for item in overrides if item != "tracking=none"),
        *TRACKED,
        "training.epochs=20",
        "training.eval_steps=100000",
        "run_name=long",
        "resume=auto",
    ]
    steps = [0]
    for number, exit_code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        child = start_script("train_criteria.py", *long, "training.save_steps=1")
        done = _signalled(child, number, run_dir=run_dir)
        assert done.returncode == exit_code, done.stderr
        assert "the state is saved" in done.stderr
        assert "Traceback" not in done.stderr
        checkpoint = load_checkpoint(
            run_dir / "checkpoints" / "last_checkpoint.pt", task="criteria"
        )
        steps.append(checkpoint.step)
        (run,) = tracked_runs(output_dir)
        assert run.info.status == "KILLED"
        assert not (run_dir / "metrics.json").exists()
    assert steps == sorted(set(steps))

    assert main(["train", "task=criteria", *long]) == 0
    (run,) = tracked_runs(output_dir)
    assert run.info.status == "FINISHED"
    assert read_json(run_dir / "manifest.json")["status"] == "finished"
    assert read_json(run_dir / "manifest.json")["steps"] > steps[-1]
    assert files_of(run_dir) == FILES


def _signalled(
    child: Any, number: signal.Signals, *, run_dir: Path
) -> subprocess.CompletedProcess[str]:
    """Signal a training when it writes a (further) checkpoint."""
    checkpoint = run_dir / "checkpoints" / "last_checkpoint.pt"
    before = checkpoint.stat().st_ino if checkpoint.exists() else None
    while child.is_alive():
        if checkpoint.exists() and checkpoint.stat().st_ino != before:
            child.send_signal(number)
            break
        time.sleep(0.02)
    return child.wait()


@pytest.mark.faults("two starts at once in one directory", "the second is refused")
def test_a_run_directory_that_another_process_holds_is_refused(
    overrides: list[str], tmp_path: Path, own_logging: None, capsys: pytest.CaptureFixture
) -> None:
    run_dir = tmp_path / "outputs" / "criteria" / "held"
    run_dir.mkdir(parents=True)
    with FileLock(run_dir / ".lock"):
        for resume in ("null", "auto"):
            argv = [*overrides, "run_name=held", f"resume={resume}"]
            assert main(["train", "task=criteria", *argv]) == 2
            told = capsys.readouterr().err
            assert f"Another process is training in {run_dir}." in told
        assert files_of(run_dir) == {".lock"}


def test_a_run_that_crashes_is_failed_in_mlflow_and_keeps_its_traceback(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_logging: None
) -> None:
    def crash(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(CriteriaTask, "loss", crash)
    untracked = [item for item in overrides if item != "tracking=none"]
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["train", "task=criteria", *untracked, *TRACKED, "run_name=crashed"])
    (run,) = tracked_runs(tmp_path / "outputs")
    assert (run.info.run_name, run.info.status) == ("crashed", "FAILED")
    assert not (tmp_path / "outputs" / "checkpoints").exists()


def test_a_paraphrased_corpus_trains_and_its_faults_are_counted(
    overrides: list[str],
    paraphrased_corpus: Path,
    tmp_path: Path,
    own_logging: None,
    capsys: pytest.CaptureFixture,
) -> None:
    real = [item for item in overrides if item != "data.splits=splits.json"]
    argv = [*real, f"data.dir={paraphrased_corpus}", "training.epochs=1", "run_name=paraphrased"]
    assert main(["train", "task=criteria", *argv]) == 0
    told = capsys.readouterr().err
    assert (
        "Read 15 posts and 22 annotations: 135 pairs, of which 15 met, 2 explicitly not met, "
        "118 unannotated; 0 contradictions"
    ) in told
    assert "1 fuzzy, 21 lost" in told
    report = read_json(tmp_path / "outputs" / "criteria" / "paraphrased" / "alignment.json")
    counts = report["alignment"]["counts"]
    assert {kind: count for kind, count in counts.items() if count} == {"fuzzy": 1, "lost": 21}
    assert len(report["alignment"]["ids"]["lost"]) == 21
    labels = report["labels"]
    assert (labels["n_posts"], labels["n_annotations"], labels["n_pairs"]) == (15, 22, 135)
    assert sum(labels["positives"].values()) == 15
    assert sum(labels["explicit_negatives"].values()) == 2
    assert sum(labels["unannotated"].values()) == 118
    assert labels["contradictions"] == []  # the two hard negatives are of other words
