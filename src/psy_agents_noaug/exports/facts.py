"""What a model card says of a run: figures, sizes, and how often test was evaluated."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psy_agents_noaug.errors import DataError
from psy_agents_noaug.run.directory import RunDirectory, directory_of
from psy_agents_noaug.training.checkpoint import Checkpoint, weights_sha256
from psy_agents_noaug.utils.files import read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFacts:
    """What is known of the figures of a checkpoint.

    Args:
        figures: as in metrics.json; of a lone checkpoint those on val that it carries.
        sizes: of each split, `posts`, `pairs` and `positives` (by criterion); none of a lone checkpoint.
        n_test_evaluations: how often the run's models were evaluated on test; None: not known.
        is_whole: whether the figures are the run's report on these weights.
    """

    figures: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    n_test_evaluations: int | None = None
    is_whole: bool = False


def facts_of(path: Path, checkpoint: Checkpoint) -> RunFacts:
    """Return what the run's directory, if there is one, says of a checkpoint.

    Its figures are those of its best weights. Other weights have those that they carry; those of other
    data, which somebody copied there, have nothing of the run.

    Args:
        path: of the checkpoint.
        checkpoint: the contents.
    """
    carried = RunFacts({f"val/{key}": value for key, value in checkpoint.metrics.items()})
    run = directory_of(path)
    if not run.config.is_file():
        logger.info(
            "%s is not in a run's directory: the card has the figures that it carries.", path
        )
        return carried
    manifest = run.read_manifest()
    data = manifest.get("data", {})
    own = checkpoint.metadata.get("fingerprints", {})
    if any(data.get(key, value) != value for key, value in own.items()):
        logger.warning("%s is of other data: the card has the figures that it carries.", path)
        return carried
    number = run.n_evaluations("test")
    if manifest.get("weights_sha256") != weights_sha256(checkpoint.weights):
        logger.warning(
            "%s does not report these weights: the card has the figures that the checkpoint carries.",
            run.path,
        )
        return RunFacts(carried.figures, _sizes(run), number)
    figures = {key: value for split in ("val", "test") for key, value in run.figures(split).items()}
    return RunFacts(figures or carried.figures, _sizes(run), number, is_whole=bool(figures))


def _sizes(run: RunDirectory) -> Mapping[str, Mapping[str, Any]]:
    """Return the sizes of the splits in alignment.json; none where it is absent or damaged."""
    try:
        found = read_json(run.alignment)["splits"]
        # Of a model that has learned val too there is none.
        return {split: dict(found[split]) for split in ("train", "val", "test") if split in found}
    except (DataError, LookupError, TypeError, ValueError) as error:
        logger.warning("The card lacks the sizes of the splits: %s", error)
        return {}
