"""What runs without the extras, and what is said where one is missing."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
# Arguments: modules, whose import becomes an ImportError; a script; its own arguments.
RUN_WITHOUT = """
import json
import runpy
import sys

_, modules, *sys.argv = sys.argv
sys.modules.update(dict.fromkeys(json.loads(modules)))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without(
    modules: Iterable[str], script: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    path = REPOSITORY / "scripts" / script
    command = [sys.executable, "-c", RUN_WITHOUT, json.dumps(list(modules)), str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_training_needs_the_core_dependencies_alone(
    overrides_for: Callable[..., list[str]], tmp_path: Path
) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    core = with_dependencies(project["dependencies"]) | {project["name"]}
    others = [
        module
        for module, distributions in metadata.packages_distributions().items()
        if not core & {canonicalize_name(name) for name in distributions}
    ]
    assert {"mlflow", "optuna", "peft", "pytest"} < set(others)
    done = run_without(others, "train_joint.py", *overrides_for(tmp_path, "joint"))
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("joint/*/metrics.json"))) == 1


@pytest.mark.parametrize("missing", ["optuna", "sqlalchemy", "cmaes"])
def test_a_search_without_its_packages_says_how_to_install_them(
    missing: str, tmp_path: Path
) -> None:
    done = run_without(
        [missing],
        "run_hpo_stage.py",
        "hpo=stage0_sanity",
        "task=criteria",
        f"output_dir={tmp_path}",
    )
    assert done.returncode == 2
    assert f"{missing}, which is not installed: pip install 'psy-agents-noaug[hpo]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def with_dependencies(requirements: Iterable[str]) -> set[str]:
    """Return the names of the distributions that `requirements` install, theirs included."""
    left = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    while left:
        wanted = left.pop()
        name = canonicalize_name(wanted.name)
        for extra in {"", *wanted.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            needs = map(Requirement, metadata.requires(name) or [])
            left += [n for n in needs if n.marker is None or n.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}
