"""The errors a user can cause and mend; entry points print them without a traceback (exit 2)."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class PsyAgentsError(Exception):
    """Base of every error whose message is written for the user."""


class ConfigError(PsyAgentsError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class OutOfMemoryError(ConfigError):
    """Not even the smallest piece of work fits in memory."""


class RunInUseError(ConfigError):
    """Another process trains in the run's directory."""


class DataError(PsyAgentsError):
    """An input file breaks the data contract. Its message never quotes the text of a post."""


class CheckpointError(PsyAgentsError):
    """A checkpoint is damaged, unsafe, or does not fit what it is used for."""


class NonFiniteError(PsyAgentsError):
    """A loss or gradient became NaN or infinite; names the examples of the step."""


class StoppedError(Exception):
    """Who watches a training wants no more of it; nothing is wrong."""


class Interrupted(BaseException):
    """A signal asked the run to stop, and its state is saved.

    Derives from `BaseException`, as `KeyboardInterrupt` does: nobody should catch it by accident.
    """

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def faults_message(headline: str, faults: Sequence[str]) -> str:
    """One message for all faults: the headline, then a line each."""
    return "\n".join([headline, *(f"  - {fault}" for fault in faults)])


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
