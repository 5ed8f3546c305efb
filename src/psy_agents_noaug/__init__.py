"""Reproducible fine-tuning of Hugging Face encoders on DSM-5 criteria, without augmentation."""

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psy_agents_noaug.api import (
        adapt,
        check_data,
        cross_validate,
        evaluate,
        export,
        load,
        train,
    )
    from psy_agents_noaug.run.predictor import Predictor

__version__ = "0.2.0"
__all__ = [
    "Predictor",
    "__version__",
    "adapt",
    "check_data",
    "cross_validate",
    "evaluate",
    "export",
    "load",
    "train",
]

# GNU's OpenMP, that of PyTorch's wheels for Linux, reads this once, when it is loaded. A thread that
# waits for the others spins first, by default for so long that it takes the core from the very thread
# that it waits for, as soon as another process wants a core. A step of MiniLM on two cores then took
# 1,530 ms in place of 390; with this 680, and 350 on idle cores (benchmarks/RESULTS.md).
if sys.platform == "linux" and "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def __getattr__(name: str) -> Any:
    """Import the interface when it is first used, so that the command line answers at once."""
    if name in ("adapt", "check_data", "cross_validate", "evaluate", "export", "load", "train"):
        from psy_agents_noaug import api

        return getattr(api, name)
    if name == "Predictor":
        from psy_agents_noaug.run.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
