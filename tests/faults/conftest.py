"""What several areas of faults share."""

import multiprocessing
import os
import re
import shutil
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.errors import Interrupted, PsyAgentsError
from psy_agents_noaug.run.train import train

Refusal = Callable[..., str]
Together = Callable[..., list[tuple[int, str]]]


@pytest.fixture
def together(tmp_path: Path) -> Together:
    """Return a function that calls `work(rank)` in `count` processes of one training.

    It returns the exit code and the error message of each. A process that waits for ever fails the test.
    """

    def run(
        count: int, work: Callable[[int], object], *, seconds: float = 120
    ) -> list[tuple[int, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for old in tmp_path.glob("rank*.txt"):
            old.unlink()
        outputs = [tmp_path / f"rank{rank}.txt" for rank in range(count)]
        fork = multiprocessing.get_context("fork")
        processes = [
            fork.Process(target=_run, args=(work, rank, count, port, outputs[rank]), daemon=True)
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(seconds)
        hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
        assert not hung, f"processes {hung} hang"
        return [
            (process.exitcode or 0, path.read_text() if path.exists() else "")
            for process, path in zip(processes, outputs, strict=True)
        ]

    return run


def _run(work: Callable[[int], object], rank: int, count: int, port: int, output: Path) -> None:
    """Do what `process.guarded` does, for a function."""
    place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    code, message = 0, ""
    try:
        work(rank)
    except PsyAgentsError as error:
        code, message = 2, f"{type(error).__name__}: {error}"
    except Interrupted as stop:
        code, message = stop.exit_code, str(stop)
    except BaseException:  # noqa: BLE001  (a child tells its parent)
        code, message = 1, traceback.format_exc()
    output.write_text(message)
    sys.stdout.flush()
    # Not an ordinary exit: what pytest does at one is the parent's.
    os._exit(code)


@pytest.fixture
def only_message(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Return a function to the error that ends what was said; log lines may come before it."""

    def message() -> str:
        out, told = capfd.readouterr()
        assert out == ""
        assert "Traceback" not in told
        found = re.findall(
            r"^(?:Config|Data|Checkpoint|Storage)Error: [^\0]+\Z", told, flags=re.MULTILINE
        )
        assert len(found) == 1, told
        assert found[0].count("Error: ") == 1
        return found[0]

    return message


@pytest.fixture
def refusal_of_training(
    overrides: list[str], own_logging: None, only_message: Callable[[], str]
) -> Refusal:
    """Return a function from further overrides to the message with which training is refused."""

    def refusal(*more: str) -> str:
        assert main(["train", "task=criteria", *overrides, *more]) == 2
        return only_message()

    return refusal


@pytest.fixture
def refusal_of_evaluation(own_logging: None, only_message: Callable[[], str]) -> Refusal:
    """Return a function from arguments to the message with which evaluating is refused."""

    def refusal(*arguments: str) -> str:
        assert main(["eval", "task=criteria", *arguments]) == 2
        return only_message()

    return refusal


@pytest.fixture(scope="session")
def finished(
    overrides_for: Callable[[Path], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The directory of a finished run, `<output_dir>/criteria/done`."""
    overrides = overrides_for(tmp_path_factory.mktemp("finished"))
    return train(load_train_config("criteria", [*overrides, "run_name=done"])).directory


@pytest.fixture
def checkpoint(finished: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be spoilt."""
    return Path(shutil.copy(finished / "checkpoints" / "best_checkpoint.pt", tmp_path))
