"""Reproducible fine-tuning of Hugging Face encoders on DSM-5 criteria, without augmentation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psy_agents_noaug.api import evaluate, train

__version__ = "0.2.0"
__all__ = ["__version__", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    """Import the interface when it is first used, so that the command line answers at once."""
    if name in ("evaluate", "train"):
        from psy_agents_noaug import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
