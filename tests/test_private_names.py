"""Nothing in the package uses a private name of a dependency: it may change in any release."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src" / "psy_agents_noaug"
# PyTorch has no public function that does this. The module tries them before it calls them.
EXCEPTIONS = {
    ("models/kernels/varlen.py", "_efficient_attention_forward"),
    ("models/kernels/varlen.py", "_flash_attention_forward"),
}


def test_no_module_uses_a_private_name_of_another():
    paths = sorted(SOURCES.rglob("*.py"))
    assert len(paths) > 30
    found = {
        (path.relative_to(SOURCES).as_posix(), line, name)
        for path in paths
        for line, name in private_names(path.read_text(encoding="utf-8"))
    }
    faults = [
        f"{path}, line {line}: {name}"
        for path, line, name in sorted(found)
        if (path, name) not in EXCEPTIONS
    ]
    assert faults == []
    assert {(path, name) for path, _, name in found} == EXCEPTIONS


@pytest.mark.parametrize(
    "source",
    [
        "torch.ops.aten._softmax_backward_data(a, b)",
        "from optuna.storages import _cached_storage",
        "import optuna._hypervolume",
        "from torch._dynamo import reset",
        "getattr(config, '_attn_implementation', None)",
        "self.model.config._attn_implementation",
    ],
)
def test_a_private_name_is_found(source):
    assert len(list(private_names(source))) == 1


@pytest.mark.parametrize("source", ["self._own", "cls._own", "torch.__version__", "_own(1)"])
def test_own_names_and_dunders_are_not_faults(source):
    assert list(private_names(source)) == []


def private_names(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of each private attribute or import, those of `self` and `cls` excepted."""
    for node in ast.walk(ast.parse(source)):
        for name in _names(node):
            if any(part.startswith("_") and not part.startswith("__") for part in name.split(".")):
                yield node.lineno, name


def _names(node: ast.AST) -> list[str]:
    match node:
        case ast.Attribute(value=ast.Name(id="self" | "cls")):
            return []
        case ast.Attribute():
            return [node.attr]
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            return [f"{node.module}.{alias.name}" for alias in node.names]
        case ast.Call(
            func=ast.Name(id="getattr" | "hasattr" | "setattr"),
            args=[_, ast.Constant(value=str() as name), *_],
        ):
            return [name]
    return []
