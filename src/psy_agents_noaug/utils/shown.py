"""Text from files, ids, names and paths, made safe to show on a terminal and in a spreadsheet."""

import logging
import os
import re
from contextlib import suppress
from typing import TextIO

MAX_LINE = 2000  # characters
# Control characters but for tab and line feed (ESC starts the commands of a terminal), the marks that
# turn the direction of writing, and the line ends that some terminals obey.
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    """Return `text` with control characters as escapes, and lines cut at `MAX_LINE` characters."""
    lines = []
    for line in text.split("\n"):
        safe = _COMMANDS.sub(lambda found: ascii(found[0])[1:-1], line[: MAX_LINE + 1])
        if len(line) > MAX_LINE:
            safe = f"{safe[:MAX_LINE]}... ({len(line) - MAX_LINE:,} characters more)"
        lines.append(safe)
    return "\n".join(lines)


def spreadsheet_cell(value: object) -> object:
    """Return a CSV cell that a spreadsheet does not run: text like a formula gets a quote before it.

    Source: OWASP, "CSV Injection".
    """
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value


def discard(stream: TextIO) -> None:
    """Send what a stream still holds nowhere: at its end Python would try again to write it."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class PrintableFormatter(logging.Formatter):
    """Formats log lines as `LEVEL message`, `printable`."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return printable(super().format(record))
