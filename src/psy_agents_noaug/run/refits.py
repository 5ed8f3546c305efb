"""Models that have learned val too: where their thresholds come from. torch is not imported."""

from collections.abc import Mapping
from typing import Any

REFIT = "refit"  # the key in the metadata of a checkpoint, and in a manifest
PLAN = "plan_sha256"  # not in checkpoints that are shared

LEARNED_VAL = "the model has learned val (refit=train+val), so that figures on it would say nothing"


def refit_of(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the origin of a refit, from a manifest or the metadata of a checkpoint, if it is one."""
    origin = record.get(REFIT)
    is_whole = isinstance(origin, Mapping) and all(
        isinstance(origin.get(key), int | float) for key in ("epochs", "n_folds")
    )
    return origin if is_whole else None


def describe(origin: Mapping[str, Any]) -> str:
    """Return in two sentences how long a model was trained, and what its decision rule was fitted on.

    Args:
        origin: of the refit, from a checkpoint or a manifest.
    """
    plan = f", plan {str(origin[PLAN])[:12]}" if PLAN in origin else ""
    return (
        f"The model learns train and val, for {origin['epochs']:.4g} epochs (the median of "
        f"{origin['n_folds']} folds). Its decision rule (thresholds, calibration) was fitted on "
        f"out-of-fold predictions of train and val (cross-validation{plan})."
    )
