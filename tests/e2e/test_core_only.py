"""A training needs no package but the core dependencies and theirs."""

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
TRAIN_WITHOUT = """
import json
import sys

for module in json.loads(sys.argv[1]):
    sys.modules[module] = None  # to import it is an ImportError

from psy_agents_noaug.cli import run_train

sys.exit(run_train("joint", sys.argv[2:]))
"""


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
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            TRAIN_WITHOUT,
            json.dumps(others),
            *overrides_for(tmp_path, "joint"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("joint/*/metrics.json"))) == 1


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
