"""Optional packages: what an extra of this package installs, asked for by name when it is missing."""

from importlib.util import find_spec

from psy_agents_noaug.errors import ConfigError


def require(module: str, *, extra: str, purpose: str) -> None:
    """Check that an optional package is installed, without importing it.

    Args:
        module: name of the top-level module, as in `import optuna`.
        extra: the extra of `psy-agents-noaug` that installs it.
        purpose: what needs it, to begin the sentence "... needs optuna".

    Raises:
        ConfigError: it is not installed; the message holds the pip command.
    """
    if find_spec(module) is None:
        raise ConfigError(
            f"{purpose} needs {module}, which is not installed: "
            f"pip install 'psy-agents-noaug[{extra}]'"
        )
