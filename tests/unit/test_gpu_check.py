"""`make gpu`, as far as it can be shown without a GPU."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from psy_agents_noaug.config.loading import load_train_config

SCRIPT = Path(__file__).parents[2] / "tools" / "gpu_check.py"


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)  # for its dataclasses
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so_and_exits_2(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--json", str(tmp_path / "results.json")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("There is no CUDA GPU: ")
    assert not list(tmp_path.iterdir())


def test_a_step_that_fails_or_hangs_does_not_stop_the_rest(
    gpu_check: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = gpu_check.Step
    printed = "print('noise'); print('{\"examples_per_second\": 812.5, \"peak_memory_mib\": 1024}')"
    # It holds the output open from a process of its own, as a loader's worker does.
    hangs = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    monkeypatch.setattr(
        gpu_check,
        "steps",
        lambda: [
            step("tests", ("-c", "print('1 failed, 21 passed, 2 skipped in 3.1s'); exit(1)"), 20.0),
            step("slow", ("-c", hangs), 0.5),
            step("training", ("-c", printed), 20.0),
            step("prediction", ("-c", "exit(1)"), 20.0, package="no_such_package"),
        ],
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "system_info", lambda: {"gpus": []})
    monkeypatch.setattr(gpu_check, "describe_system", lambda info: "one GPU")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--json", str(tmp_path / "results.json")])
    assert gpu_check.main() == 1
    shown = capsys.readouterr().out.splitlines()
    assert [line.rsplit(maxsplit=1)[0].rstrip() for line in shown if "---" not in line] == [
        "one",
        "step        outcome   figures",
        "tests       failed    1 failed, 21 passed, 2 skipped",
        "slow        too slow",
        "training    ok        812.5 examples per second, 1024 peak memory mib",
        "prediction  not run   no_such_package is not installed",
    ]
    written = json.loads((tmp_path / "results.json").read_text())
    assert [one["outcome"] for one in written["steps"]] == ["failed", "too slow", "ok", "not run"]
    assert written["steps"][2]["figures"] == {"examples_per_second": 812.5, "peak_memory_mib": 1024}


def test_what_was_not_run_is_no_failure(gpu_check: ModuleType) -> None:
    result = gpu_check.Result
    assert gpu_check.exit_code([result("a", "ok"), result("b", "not run")]) == 0
    assert gpu_check.exit_code([result("a", "ok"), result("b", "failed")]) == 1
    assert gpu_check.exit_code([result("a", "too slow")]) == 1


def test_when_time_is_over_nothing_more_is_run(gpu_check: ModuleType) -> None:
    step = gpu_check.Step("late", ("-c", "exit(1)"), 20.0)
    assert gpu_check.run(step, seconds_left=0.0).outcome == "not run"


def test_the_commands_are_of_files_and_systems_that_exist(gpu_check: ModuleType) -> None:
    steps = gpu_check.steps()
    assert len({step.name for step in steps}) == len(steps) > 10
    assert sum(step.command[:2] == ("-m", "pytest") for step in steps) == 1
    for step in steps:
        if step.command[0] != "-m":
            source = (SCRIPT.parents[1] / step.command[0]).read_text(encoding="utf-8")
            system = step.command[step.command.index("--measure") + 1]
            assert f'"{system}":' in source
            load_train_config("criteria", [one for one in step.command if "=" in one])
