"""Shared fixtures of the tests that inject faults."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.run.train import train

Refusal = Callable[..., str]


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
