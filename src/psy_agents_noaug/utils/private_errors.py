"""Errors that carry no text of a post to where they are shown or stored."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from psy_agents_noaug.errors import DataError


@contextmanager
def without_texts() -> Iterator[None]:
    """Take texts out of the errors of the decorated function.

    Error reporters and notebooks may show the local variables of a traceback, and the errors that led
    to an error: a `JSONDecodeError` holds the whole file. So local variables are cleared, and a
    DataError, whose message is complete, forgets what led to it.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DataError):
            error.__cause__ = error.__context__ = None
        for one in _chain(error):
            traceback.clear_frames(one.__traceback__)
        raise


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and those that led to it."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in found:
            found.append(one)
            waiting += [one.__cause__, one.__context__]
    return found
