"""The page of the commands, from the table of verbs in `cli` and the files of `scripts/`."""

import ast
from collections.abc import Iterator
from pathlib import Path

from pages import block, code, table
from pages import page as page_of
from settings import SECTION_OF_VERB

from psy_agents_noaug.cli import VERBS, Verb

INTRODUCTION = """A command is `psy-agents VERB [KEY=VALUE | GROUP=CHOICE]...`, in Hydra's syntax.
`psy-agents VERB --help` lists the groups, and all keys with their values. `python -m
psy_agents_noaug` is the same command."""
EXIT_CODES = (
    ("0", "done"),
    ("2", "something that you can mend: one message says what, where, and what to do"),
    ("1", "a fault of this package, with a traceback"),
    ("130, 143, 129", "interrupted by Ctrl-C, SIGTERM or SIGHUP; the state is saved"),
)


def page(repository: Path) -> str:
    """Return the page."""
    return page_of(
        "# Commands",
        INTRODUCTION,
        *(part for verb in VERBS for part in _verb(verb)),
        "## Exit codes",
        table(("code", "meaning"), EXIT_CODES),
        "## Scripts",
        "In a clone of the repository these are the same commands:",
        table(("script", "what it does"), _scripts(repository / "scripts")),
    )


def _verb(verb: Verb) -> Iterator[str]:
    yield f"## {verb.name}"
    yield f"{verb.summary[0].upper()}{verb.summary[1:]}."
    yield block(f"psy-agents {verb.name} {verb.usage}", language="text")
    yield "For example:"
    yield block(verb.example, language="bash")
    assert verb.compose is None or verb.name in SECTION_OF_VERB, verb.name
    if section := SECTION_OF_VERB.get(verb.name):
        yield f"Settings: [{section.lower()}](settings.md#{section.lower().replace(' ', '-')})."


def _scripts(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring, path
        yield code(path.name), docstring.partition(":")[0]
