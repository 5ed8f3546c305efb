"""Texts that annotation tools have annotated in the tests, and offsets in their units."""

import json
from typing import Any

# Characters outside of the basic plane before, in and between what is annotated.
TEXT = "😀👍🏽 I cannot sleep. 😢 I cry all day,\nand I cry at night. 🐕"
OTHER = "We painted the kitchen. Nothing else."


def units(text: str) -> int:
    """The length of a text in UTF-16 units."""
    return len(text.encode("utf-16-le")) // 2


def at(words: str, text: str = TEXT, *, utf16: bool = False) -> tuple[int, int]:
    """Where the words are, in code points or UTF-16 units."""
    start = text.index(words)
    count = units if utf16 else len
    return count(text[:start]), count(text[: start + len(words)])


def jsonl(*records: Any) -> str:
    """JSON, a line each."""
    return "".join(f"{json.dumps(record)}\n" for record in records)
