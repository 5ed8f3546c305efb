"""The page of the Python interface, from the docstrings of what the package exports and returns."""

from collections.abc import Iterator
from pathlib import Path

import griffe
from docstrings import in_one_line, sections_of
from pages import block, code, table
from pages import page as page_of

PACKAGE = "psy_agents_noaug"
INTRODUCTION = """What `import psy_agents_noaug` offers, and what it returns. PyTorch is imported
when a function is first called. [The quickstart](../quickstart.md#from-python) shows it in use."""
FUNCTIONS = (
    "api.train",
    "api.evaluate",
    "api.cross_validate",
    "api.load",
    "api.export",
)
RETURNED = (
    "run.evaluate.RunResult",
    "run.predictor.Predictor",
    "run.predictor.ExplainedSpan",
    "exports.export.ExportResult",
)
ERRORS = "errors"


def page(repository: Path) -> str:
    """Return the page."""
    package = griffe.load(PACKAGE, search_paths=[repository / "src"])
    assert isinstance(package, griffe.Module)
    return page_of(
        "# Python",
        INTRODUCTION,
        *(part for name in FUNCTIONS for part in _function(package[name], level=2)),
        *(part for name in RETURNED for part in _class(package[name])),
        "## Errors",
        f"All are in `{PACKAGE}.{ERRORS}`.",
        table(("error", "what it says"), _errors(package[ERRORS])),
    )


def _function(function: griffe.Function, *, level: int) -> Iterator[str]:
    yield f"{'#' * level} {function.name}"
    yield block(_signature(function), language="text")
    yield from _told(function)


def _signature(function: griffe.Function) -> str:
    """Return the call with an argument a line, if there is more than one, and what it returns."""
    shown = []
    keyword_only = False
    for argument in function.parameters:
        if argument.name == "self":
            continue
        if argument.kind is griffe.ParameterKind.keyword_only and not keyword_only:
            keyword_only = True
            shown.append("*")
        default = "" if argument.default is None else f" = {argument.default}"
        shown.append(f"{argument.name}: {_unquoted(argument.annotation)}{default}")
    inside = ", ".join(shown)
    if len(shown) > 1:
        inside = "".join(f"\n    {one}," for one in shown) + "\n"
    return f"{function.name}({inside}) -> {_unquoted(function.returns)}"


def _unquoted(annotation: object) -> str:
    return str(annotation).strip("'\"")


def _class(described: griffe.Class) -> Iterator[str]:
    yield f"## {described.name}"
    yield from _told(described)
    for name, member in described.members.items():
        if name.startswith("_") or not member.has_docstring:
            continue
        if isinstance(member, griffe.Function):
            yield from _function(member, level=3)
        elif "property" in member.labels:
            yield f"### {name}"
            yield from _told(member)


def _told(described: griffe.Object | griffe.Alias) -> Iterator[str]:
    """Yield the paragraphs and tables of a docstring."""
    assert described.docstring, described.path
    for section in sections_of(described.docstring.value):
        match section:
            case griffe.DocstringSectionText():
                yield section.value
            case griffe.DocstringSectionParameters() | griffe.DocstringSectionAttributes():
                rows = [(code(item.name), in_one_line(item.description)) for item in section.value]
                yield table(("argument", "what it is"), rows)
            case griffe.DocstringSectionReturns():
                yield "Returns: " + " ".join(
                    in_one_line(item.description) for item in section.value
                )
            case griffe.DocstringSectionRaises():
                rows = [
                    (code(str(item.annotation)), in_one_line(item.description))
                    for item in section.value
                ]
                yield table(("raises", "when"), rows)


def _errors(module: griffe.Module) -> Iterator[tuple[str, str]]:
    for name, member in module.classes.items():
        assert member.docstring, member.path
        yield code(name), in_one_line(str(sections_of(member.docstring.value)[0].value))
