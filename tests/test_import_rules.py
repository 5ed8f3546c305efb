"""Who may import whom. The table is the design's; the imports are read from the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "psy_agents_noaug"
BASE = {"errors", "utils"}
EVERYTHING = {"config", "data", "metrics", "models", "tasks", "tracking", "training"}

# A folder may always import itself. `tasks.base` and `tasks.registry` are single modules of `tasks`.
ALLOWED = {
    "__init__": {"api", "run.predictor"},
    "api": {"config", "errors", "exports", "report", "run", "tasks.registry", "utils"},
    "errors": set(),
    "utils": {"errors"},
    "config": BASE | {"tasks.registry"},
    "data": BASE,
    "metrics": BASE,
    "models": BASE,
    "tracking": BASE,
    "tasks": BASE | {"config", "data", "metrics", "models"},
    "training": BASE | {"config", "metrics.tables", "tasks.base", "tracking"},
    "run": BASE | EVERYTHING | {"__version__"},
    "hpo": BASE | {"config", "metrics", "run", "tasks.registry", "tracking"},
    "report": BASE
    | {"__version__", "config", "data", "metrics", "run", "tasks.registry", "tracking.base"},
    "exports": BASE | EVERYTHING | {"__version__", "run"},
    "importers": BASE | {"config", "data", "metrics.tables"},
    "comparison": BASE | {"config", "metrics", "report", "run", "tasks.registry"},
    "process": BASE,
    "cli": BASE
    | {"__version__", "comparison", "config", "exports", "hpo", "importers", "process"}
    | {"report", "run", "tasks.registry"},
    "__main__": {"cli"},
    "scripts": {"__main__"},
}


def test_every_module_imports_only_what_its_folder_may():
    sources = [*(REPOSITORY / "src" / PACKAGE).rglob("*.py"), *REPOSITORY.glob("scripts/*.py")]
    assert len(sources) > 30
    faults = [
        f"{path.relative_to(REPOSITORY)}: {fault}"
        for path in sorted(sources)
        for fault in forbidden_imports(_folder(path), path.read_text(encoding="utf-8"))
    ]
    assert faults == []


def test_every_folder_and_module_of_the_package_is_in_the_table():
    entries = {
        path.stem if path.is_file() else path.name
        for path in (REPOSITORY / "src" / PACKAGE).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert entries <= set(ALLOWED)


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("training", "from psy_agents_noaug.data.encoding import EncodedPairs"),
        ("training", "import psy_agents_noaug.tasks.criteria.task"),
        ("errors", "from psy_agents_noaug.utils import files"),
        ("data", "from psy_agents_noaug import models"),
        ("data", "def late():\n    from psy_agents_noaug.config.schema import DataConfig"),
        ("models", "if TYPE_CHECKING:\n    from psy_agents_noaug.training.optim import trainable"),
        ("run", "from psy_agents_noaug.cli import main"),
        ("config", "from ..models import encoder"),
        ("scripts", "from psy_agents_noaug.training.optim import trainable"),
    ],
)
def test_a_forbidden_import_is_found_wherever_it_hides(folder, source):
    assert len(list(forbidden_imports(folder, source))) == 1


def test_what_the_table_allows_and_other_packages_are_not_faults():
    source = "import torch\nfrom psy_agents_noaug.training import optim\nimport psy_agents_other"
    assert list(forbidden_imports("training", source)) == []
    assert list(forbidden_imports("run", source)) == []


def forbidden_imports(folder: str, source: str) -> Iterator[str]:
    """Yield each import of ours in `source` that `folder` must not make; relative ones too."""
    allowed = ALLOWED[folder] | {folder}
    for node in ast.walk(ast.parse(source)):
        for name in _imported(node):
            parts = name.split(".")
            if name == "." or (
                parts[0] == PACKAGE and not {parts[1], ".".join(parts[1:3])} & allowed
            ):
                yield f"line {node.lineno}: {folder} must not import {name}"


def _imported(node: ast.AST) -> list[str]:
    """The absolute names that a statement imports; `.` for a relative import."""
    if isinstance(node, ast.Import):
        return [f"{alias.name}." for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level > 0:
        return ["."]
    return [f"{node.module}.{alias.name}" for alias in node.names]


def _folder(path: Path) -> str:
    if path.parent.name == "scripts":
        return "scripts"
    relative = path.relative_to(REPOSITORY / "src" / PACKAGE)
    return relative.parts[0].removesuffix(".py")
