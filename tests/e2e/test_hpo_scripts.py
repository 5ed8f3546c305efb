"""A search from the first stage to the last, and the best of it trained again."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.loading import read_overrides_file

REPOSITORY = Path(__file__).parents[2]
MONITORS = {
    "criteria": "val/f1_macro",
    "evidence": "val/evidence_iou_f1",
    "joint": "val/joint_score",
}
SMALL = {
    0: ("hpo=stage0_sanity", "hpo.n_trials=2"),
    1: ("hpo=stage1_coarse", "hpo.n_trials=3"),
    2: ("hpo=stage2_fine", "hpo.n_trials=2"),
    3: ("hpo=stage3_refit", "hpo.refit.seeds=[7,8]", "hpo.refit.n_randomisations=200"),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.usefixtures("own_logging"),
]
every_task = pytest.mark.parametrize("task", ["criteria", "evidence", "joint"])


@pytest.fixture
def settings(overrides_for: Callable[..., list[str]], tmp_path: Path) -> Callable[[str], list[str]]:
    """Return what all commands of a task have in common; the learning rate is searched."""
    replaced = ("training.learning_rate=", "training.train_batch_size=")
    return lambda task: [
        item for item in overrides_for(tmp_path / "out", task) if not item.startswith(replaced)
    ]


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.slow
@every_task
def test_four_stages_and_the_best_trained_again(
    settings: Callable[[str], list[str]],
    tmp_path: Path,
    task: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    for small in SMALL.values():
        code = main(["tune", f"task={task}", *small, *settings(task)])
        assert code == 0, capsys.readouterr().err
    common = {"best_config.yaml", "trials.csv", "history.png", "study.db", "trials"}
    for number in range(3):
        assert files_of(out / f"hpo_stage{number}" / task) - {"importances.png"} == common
        latest = out / f"hpo_stage{number}" / "best_config.yaml"
        assert (
            latest.read_text() == (out / f"hpo_stage{number}/{task}/best_config.yaml").read_text()
        )
        assert yaml.safe_load(latest.read_text())["hpo"]["study"].startswith(
            f"{task}_stage{number}"
        )
    assert files_of(out / "hpo_stage3" / task) - {"importances.png"} == common | {
        "report.json",
        "seeds.png",
    }

    # Nobody looked at test before stage 3, which looks once for each training.
    looks = {path.parent.name: path.read_text() for path in out.rglob("evaluations.jsonl")}
    assert len(looks) == 4
    assert all(text.count("\n") == 1 for text in looks.values())
    assert all("hpo_stage3" in str(path) for path in out.rglob("evaluations.jsonl"))
    report = json.loads((out / f"hpo_stage3/{task}/report.json").read_text())
    _, found = read_overrides_file(out / "hpo_stage2/best_config.yaml", task=task)
    assert report["searched_value"] == found["value"]
    with (out / f"hpo_stage3/{task}/trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = [float(row["value"]) for row in rows if row["configuration"] == "best"]
    assert report["configurations"]["best"][MONITORS[task]]["mean"] == pytest.approx(sum(best) / 2)

    # Trained again, the best has the value that it had, to the last bit.
    again = [f"task={task}", f"best_config={out}/hpo_stage2/best_config.yaml"]
    own = ["tracking=none", f"output_dir={out}", "run_name=again"]
    assert main(["train-best", *again, *own]) == 0
    metrics = json.loads((out / task / "again" / "metrics.json").read_text())
    assert metrics[MONITORS[task]] == found["value"]
    checkpoint = out / "checkpoints" / "best_checkpoint.pt"
    assert main(["eval", f"task={task}", f"checkpoint={checkpoint}"]) == 0
    assert "test/" in (out / task / "again" / "metrics.json").read_text()


@pytest.mark.slow
def test_a_stage_started_again_does_nothing_but_report(
    settings: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["task=criteria", *SMALL[0], *settings("criteria")]
    assert main(["tune", *command]) == 0
    first = capsys.readouterr().out
    trials = (tmp_path / "out/hpo_stage0/criteria/trials.csv").read_text()
    assert main(["tune", *command]) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "out/hpo_stage0/criteria/trials.csv").read_text() == trials


@pytest.mark.slow
@pytest.mark.faults("a search is continued with other settings", "refused")
def test_a_stage_of_other_settings_is_not_gone_on_with(
    settings: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["task=criteria", *SMALL[0], "hpo.n_trials=1", *settings("criteria")]
    assert main(["tune", *command]) == 0
    assert main(["tune", *command, "seed=5", "hpo.sampler.seed=9"]) == 2
    told = capsys.readouterr().err
    assert "`seed` was 42, but is 5 now" in told
    assert "hpo.sampler" in told
    assert main(["tune", *command, "seed=5", "hpo.study=another"]) == 0


@pytest.mark.slow
@pytest.mark.faults("SIGTERM or Ctrl-C to a search", "state saved; the search goes on")
def test_a_search_stopped_by_a_signal_goes_on(
    settings: Callable[[str], list[str]], tmp_path: Path
) -> None:
    command = [
        sys.executable,
        str(REPOSITORY / "scripts" / "run_hpo_stage.py"),
        "task=criteria",
        *SMALL[1],
        *(item for item in settings("criteria") if not item.startswith("tracking=")),
        "training.epochs=8",
        "tracking.system_metrics=false",
    ]
    run = tmp_path / "out/hpo_stage1/criteria/trials/criteria_stage1_coarse/criteria/trial-0000"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (run / "history.csv").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out/hpo_stage1/criteria/trials.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["counts"] == "True"]
    assert len(rows) == 3
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'psy_agents_noaug/criteria'")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.status for run in parents] == ["FINISHED"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["task=criteria"], "`hpo` must be one of stage0_sanity, stage1_coarse"),
        (["hpo=stage9", "task=criteria"], "but is stage9 instead"),
        (["hpo=stage0_sanity", "task=both"], "`task` must be one of criteria, evidence, joint"),
        (["hpo=stage2_fine", "task=criteria"], "Run that stage first"),
        (
            ["hpo=stage0_sanity", "task=criteria", "hpo.trials=3"],
            "`hpo.trials` is not a known key; did you mean `hpo.n_trials`?",
        ),
        (["hpo=stage0_sanity", "task=criteria", "hpo.sampler.name=magic"], "sampler.name"),
        (["hpo=stage0_sanity", "task=criteria", "hpo.workers=2"], "must be 1 with SQLite"),
        (["hpo=stage0_sanity", "task=criteria", "run_name=mine"], "`run_name` itself"),
        (
            [
                "hpo=stage0_sanity",
                "task=criteria",
                "hpo.space.training.learning_rat={type:float,low:0.1,high:1.0}",
                "hpo.space.training.epochs={type:float,low:0.5,high:2.5}",
            ],
            "`training.learning_rat` is not a known key",
        ),
        (
            ["hpo=stage0_sanity", "task=criteria", "hpo.space.training.learning_rate.high=0.0"],
            "`low` must be below `high`",
        ),
        (
            ["hpo=stage0_sanity", "task=criteria", "hpo.storage=postgresql://me:pw@127.0.0.1:1/x"],
            "cannot be reached",
        ),
        (
            ["hpo=stage0_sanity", "task=criteria", "hpo.storage=mysql://h/x"],
            "must be postgresql://",
        ),
    ],
)
def test_bad_input_is_one_message_and_exit_2(
    settings: Callable[[str], list[str]],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    assert main(["tune", *arguments, *settings("criteria")]) == 2
    error = capsys.readouterr().err
    assert error.count("ConfigError") == 1
    assert told in error
    assert "pw" not in error
    assert "Traceback" not in error


def test_a_best_config_of_another_task_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = tmp_path / "best.yaml"
    best.write_text("hpo: {task: evidence}\nseed: 3\n")
    assert main(["train-best", "task=criteria", f"best_config={best}"]) == 2
    assert "was searched for the task evidence, but this is criteria" in capsys.readouterr().err


def test_other_conditions_than_the_searchs_are_told(
    settings: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = tmp_path / "best.yaml"
    found_by = {
        "task": "criteria",
        "data": {"corpus": "aaaa"},
        "packages": {"torch": "1.0"},
        "torch_threads": 97,
    }
    best.write_text(yaml.safe_dump({"hpo": found_by, "training.max_steps": 1}))
    code = main(["train-best", "task=criteria", f"best_config={best}", *settings("criteria")])
    told = capsys.readouterr().err
    assert code == 0, told
    assert "was found on other data: corpus aaaa (now" in told
    assert "with other versions: " in told
    assert "torch 1.0 (now" in told
    assert "with another number of CPU threads: CPU threads 97 (now" in told


def test_conditions_that_a_best_config_does_not_name_are_not_told(
    settings: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = tmp_path / "best.yaml"
    found_by = {"task": "criteria", "torch_threads": torch.get_num_threads()}
    best.write_text(yaml.safe_dump({"hpo": found_by, "training.max_steps": 1}))
    code = main(["train-best", "task=criteria", f"best_config={best}", *settings("criteria")])
    told = capsys.readouterr().err
    assert code == 0, told
    assert "was found" not in told


@pytest.mark.parametrize("arguments", [["--help"], ["hpo=stage2_fine", "task=joint", "--help"]])
def test_help_shows_the_stages_and_their_keys(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *arguments]) == 0
    told = capsys.readouterr().out
    assert "stage3_refit" in told
    assert "hpo.n_trials: " in told
