"""A span of a post."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A half-open range of code points of a post."""

    start_char: int
    end_char: int
