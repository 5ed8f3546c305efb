"""Errors that a user can cause and fix; the command line prints them without a traceback (exit 2)."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MAX_NAMES_LISTED = 10


class PsyAgentsError(Exception):
    """Base class of every error whose message is written for the user.

    Attributes:
        is_shown_elsewhere: whether another process of the same training shows this message.
    """

    is_shown_elsewhere = False


class ConfigError(PsyAgentsError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class OutOfMemoryError(ConfigError):
    """Memory ran out, and batches cannot be made smaller."""


class RunInUseError(ConfigError):
    """Another process is training in the run's directory."""


class DataError(PsyAgentsError):
    """An input file breaks the data contract. Its message never quotes the text of a post."""


class CheckpointError(PsyAgentsError):
    """A checkpoint is damaged, unsafe, or does not match the task, the data or the settings."""


class StorageError(PsyAgentsError):
    """A file cannot be written: no space, no permission, a name that is too long, a broken disk."""


class NonFiniteError(PsyAgentsError):
    """A loss, a gradient or a predicted score is NaN or infinite."""


class OtherProcessError(PsyAgentsError):
    """Another process of the same training failed or was killed."""


class LoaderError(PsyAgentsError):
    """A worker process that collates batches died, hung, or could not be started."""


class StoppedError(Exception):
    """Raised by a callback to end training early; nothing is wrong."""


class Interrupted(BaseException):
    """A signal stopped the run, and its state is saved.

    Derives from `BaseException`, as `KeyboardInterrupt` does, so that `except Exception` does not catch
    it by accident.

    Args:
        message: for the user.
        exit_code: of the process: 128 + the number of the signal.
    """

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def faults_message(headline: str, faults: Sequence[str]) -> str:
    """Return one message for all faults: the headline, then one line per fault."""
    return "\n".join([headline, *(f"  - {fault}" for fault in faults)])


def first_of(names: Sequence[str], *, n: int | None = None) -> str:
    """List the first ten names, and how many more there are: one line must not hold thousands.

    Args:
        names: all of them, or the first ten at least.
        n: how many there are; None: no more than are given.
    """
    rest = (len(names) if n is None else n) - MAX_NAMES_LISTED
    return ", ".join(names[:MAX_NAMES_LISTED]) + (f" and {rest:,} more" if rest > 0 else "")


def not_one_of(key: str, choices: Sequence[str], value: object) -> str:
    """The sentence that refuses a value which is none of the choices."""
    meant = did_you_mean(similar_names(str(value), choices))
    return f"`{key}` must be one of {', '.join(choices)}, but is {value} instead{meant or '.'}"


def did_you_mean(candidates: Sequence[str]) -> str:
    """The end of a sentence about an unknown name: what was probably meant, or nothing."""
    if not candidates:
        return ""
    *others, last = [f"`{candidate}`" for candidate in candidates]
    return f"; did you mean {', '.join(others)}{' or ' if others else ''}{last}?"


def similar_names(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that an unknown one may be a slip of, the likeliest first."""
    return get_close_matches(name, list(known), cutoff=0.7)
