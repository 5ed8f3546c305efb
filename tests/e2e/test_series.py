"""A cross-validation that is killed at random, or shared by workers, ends as an undisturbed one."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from kills import finish_with_kills

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CV = "import sys; from psy_agents_noaug.cli import main; sys.exit(main(['cv', *sys.argv[1:]]))"

Start = Callable[[list[str]], Any]


class Undisturbed(NamedTuple):
    """A series that ran without kills, and the seconds that it took."""

    folder: Path
    seconds: float


@pytest.fixture(scope="module")
def start(start_script: Callable[..., Any]) -> Start:
    """Return a function from settings to the process of `psy-agents cv` with them."""
    return lambda settings: start_script("train_criteria.py", *settings, prelude=CV)


def finish(process: Any) -> None:
    done = process.wait()
    assert done.returncode == 0, done.stderr


def wait_until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + 200
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def results(folder: Path) -> dict[str, bytes]:
    """Figures and predictions of a series and of its runs, which hold no time and no path."""
    files = [folder / "metrics.json", *folder.glob("predictions/*")]
    files += [*folder.glob("*/metrics.json"), *folder.glob("*/predictions/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}


def weights(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "manifest.json").read_text())["runs"]
    return found


@pytest.fixture(scope="module")
def command(overrides_for: Callable[..., list[str]]) -> Callable[[Path, str], list[str]]:
    def of(output_dir: Path, task: str = "criteria") -> list[str]:
        dropped = ("data.splits", "training.epochs")
        own = [item for item in overrides_for(output_dir, task) if not item.startswith(dropped)]
        own += ["folds=2", "seeds=[1,2]", "run_name=x", "data.split_fractions=[0.5,0.25,0.25]"]
        return [f"task={task}", *own, "training.epochs=8", "training.save_steps=2"]

    return of


@pytest.fixture(scope="module")
def undisturbed(
    start: Start, command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    out, began = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    finish(start([*command(out), "training.num_threads=1"]))
    return Undisturbed(out / "criteria/cv-x", time.monotonic() - began)


@pytest.mark.faults("`cv` killed at random moments", "it ends as if undisturbed, to the bit")
def test_a_cross_validation_that_is_killed_at_random_ends_as_an_undisturbed_one(
    start: Start, command: Callable[..., list[str]], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    settings = [*command(tmp_path), "training.num_threads=1"]
    finish_with_kills(lambda: start(settings), seconds=undisturbed.seconds)
    folder = tmp_path / "criteria/cv-x"
    assert results(folder) == results(undisturbed.folder)
    assert weights(folder) == weights(undisturbed.folder)


def test_two_workers_give_what_one_gives(
    start: Start, command: Callable[..., list[str]], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    process = start([*command(tmp_path), "workers=2", "training.num_threads=1"])
    first, folder = psutil.Process(process.pid), tmp_path / "criteria/cv-x"
    wait_until(lambda: (folder / "worker-1.log").exists() and first.children())
    # The first worker may have done every run before the other one has imported its modules.
    first.suspend()
    try:
        wait_until(lambda: "runs done" in (folder / "worker-1.log").read_text())
    finally:
        first.resume()
    finish(process)
    assert results(folder) == results(undisturbed.folder)
    assert weights(folder) == weights(undisturbed.folder)


@pytest.mark.parametrize(
    ("task", "figures"),
    [
        ("evidence", ["evidence_iou_f1", "evidence_token_f1"]),
        ("joint", ["joint_score", "f1_macro", "supported_f1"]),
    ],
)
def test_the_other_tasks_are_pooled_by_their_own_figures(
    start: Start, command: Callable[..., list[str]], tmp_path: Path, task: str, figures: list[str]
) -> None:
    finish(start([*command(tmp_path, task), "training.epochs=1"]))
    metrics = json.loads((tmp_path / task / "cv-x" / "metrics.json").read_text())
    for key in figures:
        assert f"cv/{key}" in metrics
        assert f"cv/mean_of_runs/{key}" in metrics
        assert f"cv/baseline_tfidf_lr/{key}" in metrics
