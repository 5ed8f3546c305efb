"""Errors that a user can cause and fix; the command line prints them without a traceback (exit 2)."""

from collections.abc import Sequence


class PsyAgentsError(Exception):
    """Base class of every error whose message is written for the user."""


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


class NonFiniteError(PsyAgentsError):
    """A loss, a gradient or a predicted score is NaN or infinite."""


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
