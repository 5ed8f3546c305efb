"""The log while several trainings run in one command."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def log_level(name: str, level: int) -> Iterator[None]:
    """Set the level of a logger, and put it back at the end.

    Args:
        name: of the logger.
        level: as `logging.WARNING`.
    """
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)
