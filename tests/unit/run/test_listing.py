"""`psy-agents runs` and `psy-agents info RUN`: from files alone, and without writing any."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from filelock import FileLock

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.loading import load_evaluate_config, load_train_config
from psy_agents_noaug.errors import ConfigError, RunInUseError
from psy_agents_noaug.run.directory import RunDirectory, open_run_directory
from psy_agents_noaug.run.evaluate import evaluate
from psy_agents_noaug.run.listing import RunsConfig, age, facts_of, runs
from psy_agents_noaug.run.overview import run_report
from psy_agents_noaug.run.train import train


@pytest.fixture(scope="module")
def trained(overrides_for, tmp_path_factory):
    """A finished run that was evaluated on test once, in the folder of its output."""
    outputs = tmp_path_factory.mktemp("listing") / "outputs"
    config = load_train_config("criteria", [*overrides_for(outputs), "run_name=first"])
    result = train(config)
    evaluation, explicit = load_evaluate_config("criteria", [f"checkpoint={result.directory}"])
    evaluate(evaluation, task_name="criteria", explicit=explicit)
    return result.directory


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, which a test may change."""
    shutil.copytree(trained, tmp_path / "outputs" / "criteria" / "first", symlinks=True)
    return tmp_path / "outputs" / "criteria" / "first"


def change_manifest(run: Path, **entries: object) -> None:
    path = run / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def unfinished(run: Path, status: str = "running", *words: str) -> None:
    """Make a run one that has not finished, of a command of `psy-agents`."""
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["best_value"]
    command = ["bin/psy-agents", *(words or ("train", "task=criteria", "run_name=first", "seed=3"))]
    manifest |= {"status": status, "monitor_mode": "max", "command": command}
    (run / "manifest.json").write_text(json.dumps(manifest))


def listed(folder: Path, task: str | None = None, **settings: str) -> str:
    return runs(RunsConfig(output_dir=str(folder), **settings), task=task, as_json=False)


def metrics_of(run: Path) -> dict[str, float]:
    return json.loads((run / "metrics.json").read_text())


def test_a_finished_run_has_its_figures_to_the_bit_and_nothing_to_go_on_with(run):
    facts, metrics = facts_of(run), metrics_of(run)
    assert (facts.task, facts.data, facts.status, facts.kind) == (
        "criteria",
        "redsm5",
        "finished",
        "train",
    )
    assert (facts.monitor, facts.best_value) == ("val/f1_macro", metrics["val/f1_macro"])
    assert (facts.split, facts.headline, facts.n_test) == ("test", "f1_macro", 1)
    assert facts.figure == metrics["test/f1_macro"]
    assert (facts.resume, facts.damage) == (None, [])


def test_a_run_that_says_running_is_killed_unless_its_lock_is_held(run):
    unfinished(run)
    assert facts_of(run).status == "killed"
    with FileLock(run / ".lock"):
        facts = facts_of(run)
        assert (facts.status, facts.resume) == ("running", None)
    assert facts_of(run).best_value == metrics_of(run)["val/f1_macro"]  # of history.csv


def test_what_was_not_finished_comes_with_the_command_that_goes_on(run):
    unfinished(run)
    assert f"\n  psy-agents train task=criteria seed=3 resume={run}" in listed(run.parents[1])
    (run / "checkpoints" / "last_checkpoint.pt").unlink()
    assert facts_of(run).resume is None


def test_the_command_that_is_printed_goes_on(run, overrides_for, capsys, own_logging):
    words = overrides_for(run.parents[1])
    unfinished(run, "interrupted", "train", "task=criteria", "run_name=first", *words)
    program, *arguments = shlex.split(facts_of(run).resume)
    assert program == "psy-agents"
    assert main(arguments) == 0
    assert f"run directory: {run}" in capsys.readouterr().out
    assert facts_of(run).status == "finished"


@pytest.mark.parametrize("words", [("tune", "hpo=stage1_coarse"), ("train", "seeds=[1,2]")])
def test_of_several_runs_of_one_command_that_command_goes_on(run, words):
    unfinished(run, "interrupted", *words)
    assert facts_of(run).resume.startswith(f"psy-agents {words[0]} ")
    assert "resume=" not in facts_of(run).resume
    assert facts_of(run).kind == ("search" if words[0] == "tune" else "train")


def test_a_run_of_another_program_has_no_command(run):
    change_manifest(run, status="failed", command=["/usr/lib/ipykernel_launcher.py", "-f", "x"])
    assert facts_of(run).resume is None


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("manifest.json", "{", "must be UTF-8 JSON"),
        ("manifest.json", "[]", "must hold a JSON object"),
        ("manifest.json", None, "there is no manifest.json"),
        ("metrics.json", '{"test/f1_macro": 0.5', "cut off or damaged"),
    ],
)
def test_a_damaged_run_is_listed_with_what_is_wrong(run, name, content, told):
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    facts = facts_of(run)
    assert facts.status == "damaged"
    assert told in facts.damage[0]
    assert told in listed(run.parents[1], status="damaged")


def test_runs_are_filtered_and_the_newest_is_first(run):
    shutil.copytree(run, run.with_name("second"))
    change_manifest(run.with_name("second"), created_at="2099-01-01T00:00:00+00:00")
    lines = listed(run.parents[1]).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["criteria/second", "criteria/first"]
    for settings in ({"task": "joint"}, {"status": "failed"}, {"data": "x"}, {"kind": "eval"}):
        assert "no such run" in listed(run.parents[1], **settings)
    assert "first" in listed(run.parents[1], task="criteria", status="finished", data="redsm5")


def test_an_evaluation_of_other_data_is_told_apart(run):
    other = run / "evaluations" / "own-best_checkpoint-0123abcd"
    other.mkdir(parents=True)
    (other / "metrics.json").write_text(json.dumps({"all/f1_macro": 0.25}, indent=2))
    (other / "evaluations.jsonl").write_text(
        '{"at": "2026-01-01T00:00:00+00:00", "split": "all"}\n'
    )
    facts = facts_of(other)
    assert (facts.kind, facts.task, facts.data) == ("eval", "criteria", "own")
    assert (facts.split, facts.figure, facts.n_test) == ("all", 0.25, 0)


def test_a_run_of_an_earlier_version_has_its_monitor_from_config_and_metrics(run):
    manifest = json.loads((run / "manifest.json").read_text())
    kept = {k: v for k, v in manifest.items() if k not in ("monitor", "best_value")}
    (run / "manifest.json").write_text(json.dumps(kept))
    assert facts_of(run).best_value == metrics_of(run)["val/f1_macro"]
    assert facts_of(run).monitor == "val/f1_macro"


def test_nothing_is_written(run):
    def state():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.parents[1].rglob("*")}

    unfinished(run)
    before = state()
    listed(run.parents[1])
    run_report(run, as_json=False)
    assert state() == before


def test_looking_at_a_run_refuses_no_training_that_begins_there(run, overrides_for, monkeypatch):
    waited = []
    monkeypatch.setattr("time.sleep", lambda seconds: (waited.append(seconds), looking.release()))
    looking = FileLock(run / ".lock")
    looking.acquire()
    words = [*overrides_for(run.parents[1]), "run_name=first", "resume=auto"]
    with open_run_directory(load_train_config("criteria", words)) as directory:
        assert directory.is_in_use()
        assert waited
        monkeypatch.undo()
        with pytest.raises(RunInUseError), open_run_directory(load_train_config("criteria", words)):
            pass
    assert directory.is_in_use() is False


def test_a_folder_without_a_lock_gets_none(tmp_path):
    assert RunDirectory(tmp_path).is_in_use() is False
    assert list(tmp_path.iterdir()) == []


def test_the_age_is_in_its_largest_unit():
    now = datetime(2026, 1, 11, 12, 0, 30, tzinfo=UTC)
    ages = {
        "2026-01-11T12:00:00+00:00": "30 s",
        "2026-01-11T09:00:00+00:00": "3 h",
        "2026-01-01T00:00:00+00:00": "10 d",
        "2026-01-12T00:00:00+00:00": "0 s",
    }
    assert {moment: age(moment, now=now) for moment in ages} == ages
    assert age(None) == age("yesterday") == "n/a"


@pytest.mark.parametrize("words", [["runs"], ["info", "outputs/criteria/first"]])
def test_listing_imports_no_torch(run, words):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "psy_agents_noaug", *words],
        cwd=run.parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "criteria" in done.stdout
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, flags=re.M))
    assert "psy_agents_noaug.run.listing" in imported
    assert imported & {"torch", "transformers", "pandas", "sklearn", "mlflow"} == set()


# ------------------------------------------------------------------------------------- info RUN


def test_a_page_has_what_is_known_of_a_run(run):
    unfinished(run, "interrupted")
    page, metrics = run_report(run, as_json=False), metrics_of(run)
    interval = [metrics[f"test/f1_macro{end}"] for end in ("", "_ci_low", "_ci_high")]
    manifest = json.loads((run / "manifest.json").read_text())
    for part in (
        "warnings:\n  the run has not finished: interrupted",
        manifest["weights_sha256"],
        manifest["data"]["corpus"],
        "training.epochs=2 (default 10)",
        "evaluated   test 1 x",
        "baseline tfidf_lr",
        "checkpoints/best_checkpoint.pt",
        f"psy-agents eval checkpoint={run} split=test",
        f"resume={run}",
    ):
        assert part in page
    assert f"{interval[0]:.3f} [" in page
    assert "seed=" not in page.split("settings that")[1].split("\n\n")[0]  # as the default


def test_a_page_as_json_holds_the_same_figures(run):
    report, metrics = json.loads(run_report(run, as_json=True)), metrics_of(run)
    assert report["figures"]["test"]["model"]["f1_macro"] == metrics["test/f1_macro"]
    assert report["evaluations"] == {"test": 1}
    assert report["files"]["metrics.json"] == (run / "metrics.json").stat().st_size


def test_a_damaged_run_has_a_page_with_what_is_wrong(run):
    (run / "metrics.json").write_text("{")
    (run / "config.yaml").write_text("task: [")
    page = run_report(run, as_json=False)
    assert "config.yaml cannot be read" in page
    assert "metrics.json" in page.split("\n\n")[0]


def test_several_looks_at_test_are_a_warning(run):
    line = (run / "evaluations.jsonl").read_text()
    (run / "evaluations.jsonl").write_text(line * 3)
    assert "test was evaluated 3 times" in run_report(run, as_json=False)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        run_report(tmp_path, as_json=False)
    with pytest.raises(ConfigError, match="must be a folder"):
        listed(tmp_path / "absent")


def test_the_commands_print_both(run, capsys, own_logging):
    assert main(["runs", f"output_dir={run.parents[1]}", "task=criteria"]) == 0
    assert "criteria/first" in capsys.readouterr().out
    assert main(["info", str(run)]) == 0
    assert "begun by train" in capsys.readouterr().out
    assert main(["info", str(run), "seed=1"]) == 2
