"""The package without the optional folder `models/kernels`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.run.train import train
from psy_agents_noaug.training.checkpoint import load_checkpoint, weights_sha256

REPOSITORY = Path(__file__).parents[2]
# The folder's dropout draws other masks than PyTorch's.
SETTINGS = (
    "model.encoder_dropout=0.0",
    "model.head_dropout=0.0",
    "training.epochs=1",
    "run_name=run",
)
# Trains and evaluates; then asks for what is not there.
COMMANDS = """
import json, sys
from psy_agents_noaug.cli import main
overrides, checkpoint = json.load(sys.stdin)
assert main(["train", "task=criteria", *overrides]) == 0
assert main(["eval", "task=criteria", f"checkpoint={checkpoint}", "tracking=none"]) == 0
sys.exit(main(["train", "task=criteria", *overrides, "training.execution=packed", "run_name=packed"]))
"""


@pytest.fixture
def without_kernels(tmp_path: Path) -> Path:
    """A copy of the package and its configs, with the folder deleted."""
    package = tmp_path / "copy" / "src" / "psy_agents_noaug"
    shutil.copytree(REPOSITORY / "configs", tmp_path / "copy" / "configs")
    shutil.copytree(
        REPOSITORY / "src" / "psy_agents_noaug",
        package,
        ignore=shutil.ignore_patterns("__pycache__", "kernels"),
    )
    # What Python leaves behind when only the tracked files are deleted.
    (package / "models" / "kernels" / "__pycache__").mkdir(parents=True)
    return package.parent


def test_without_the_kernels_everything_runs_padded_to_the_same_weights(
    without_kernels: Path, overrides_for: Callable[..., list[str]], tmp_path: Path
) -> None:
    best, present = (
        tmp_path / name / "criteria" / "run" / "checkpoints" / "best_checkpoint.pt"
        for name in ("without", "with")
    )
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input=json.dumps([[*overrides_for(tmp_path / "without"), *SETTINGS], str(best)]),
        env={**os.environ, "PYTHONPATH": str(without_kernels)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Execution: padded (models/kernels is not installed)." in done.stderr
    assert (
        "ConfigError: `training.execution=packed` is not possible: models/kernels is not installed. "
        "Use `training.execution=auto`." in done.stderr
    )
    padded = [*overrides_for(tmp_path / "with"), *SETTINGS, "training.execution=padded"]
    train(load_train_config("criteria", padded))
    first, second = (
        weights_sha256(load_checkpoint(path, task="criteria").weights) for path in (best, present)
    )
    assert first == second
