"""The wheel: what is in it, and that it trains where no checkout is."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from psy_agents_noaug import __version__

REPOSITORY = Path(__file__).parents[2]
PACKAGE = "psy_agents_noaug"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without this process's import path, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(kind: str, source: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder, cwd=source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the checkout."""
    return build("wheel", REPOSITORY, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel and, of this one, all but the project itself."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # The path alone: the files in it that would put the checkout on the path are not read.
    ours = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    (ours / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def test_the_wheel_holds_the_package_and_the_configurations_and_nothing_else(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = {
        str(path.relative_to(REPOSITORY / "src"))
        for path in (REPOSITORY / "src" / PACKAGE).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    configurations = {
        f"{PACKAGE}/{path.relative_to(REPOSITORY)}"
        for path in (REPOSITORY / "configs").rglob("*.yaml")
    }
    assert names == source | configurations
    samples = {name for name in names if name.startswith(f"{PACKAGE}/data/sample/")}
    assert {Path(name).suffix for name in samples} == {".csv", ".json", ".md", ".py"}
    assert f"{PACKAGE}/py.typed" in names


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", REPOSITORY, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"{PACKAGE}-{__version__}"
    assert build("wheel", unpacked, tmp_path / "wheel").read_bytes() == wheel.read_bytes()


def test_the_installed_command_trains_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    run(
        installed / "psy-agents",
        "train",
        "training.max_steps=2",
        "training.eval_steps=2",
        "tracking=none",
        cwd=tmp_path,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    (run_dir,) = (tmp_path / "outputs" / "criteria").iterdir()
    assert {"config.yaml", "metrics.json", "history.csv"} < {
        path.name for path in run_dir.iterdir()
    }
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["environment"]["packages"]["psy-agents-noaug"] == __version__
    assert manifest["environment"]["git"]["commit"] is None


def test_the_installed_package_is_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = f"import {PACKAGE}; print({PACKAGE}.__file__)"
    found = Path(run(installed / "python", "-c", where, cwd=tmp_path).strip())
    assert found.is_relative_to(installed.parent)


def test_the_installed_command_says_what_it_can_do(installed: Path, tmp_path: Path) -> None:
    assert "train" in run(installed / "psy-agents", "--help", cwd=tmp_path)
