"""Tables and code in Markdown, as GitHub and the site both read it."""

import re
from collections.abc import Iterable, Sequence

WRITTEN = "<!-- Written by `python tools/reference/write.py` from the code and configs/. -->"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; what Markdown would take for a column or a tag is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"`[^`]*`|<", lambda one: "&lt;" if one[0] == "<" else one[0], text).replace(
        "|", r"\|"
    )


def code(text: str) -> str:
    """Return text as code within a line."""
    return f"`{text}`"


def block(text: str, *, language: str) -> str:
    """Return lines of code."""
    return f"```{language}\n{text}\n```"


def page(*parts: str) -> str:
    """Return the text of a page from its paragraphs, tables and blocks."""
    title, *others = parts
    return "\n\n".join([title, WRITTEN, *others]) + "\n"
