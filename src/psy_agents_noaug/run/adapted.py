"""What an adapted encoder says of itself, for the runs that begin with it."""

import logging
from collections.abc import Mapping
from typing import Any

from psy_agents_noaug.config.schema import ModelConfig
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.utils.files import read_json, sha256_of_file, without_tilde

logger = logging.getLogger(__name__)

FACTS = "adaptation.json"
WEIGHTS = "model.safetensors"


def adaptations(model: ModelConfig) -> dict[str, dict[str, Any]]:
    """Return the facts of the encoders that `psy-agents adapt` wrote, by setting.

    `weights_sha256` is of the file as it is now; `is_unchanged` says whether it was written so.
    """
    found = {}
    for name in ("pretrained_model", "criteria_encoder", "evidence_encoder"):
        source = getattr(model, name)
        path = without_tilde(source or "") / FACTS
        if not (source and path.is_file()):
            continue
        try:
            facts = read_json(path)
            weights = sha256_of_file(path.with_name(WEIGHTS))
        except (DataError, OSError) as error:
            logger.warning("What %s was adapted to is not known: %s", source, error)
            continue
        if isinstance(facts, dict):
            is_unchanged = facts.get("weights_sha256") == weights
            found[name] = {**facts, "weights_sha256": weights, "is_unchanged": is_unchanged}
    return found


def adaptation_warnings(model: ModelConfig, fingerprints: Mapping[str, str]) -> list[str]:
    """Return warnings of an adapted encoder that may have read the posts of val and test of a run.

    Args:
        model: of the run.
        fingerprints: of its corpus, without corrections, and division.
    """
    found = []
    for name, facts in adaptations(model).items():
        left_out = facts.get("left_out")
        known = left_out if isinstance(left_out, dict) else {}
        changed = [key for key, value in fingerprints.items() if known.get(key) != value]
        if changed:
            found.append(
                f"`model.{name}` was adapted to posts from which val and test of another corpus or "
                f"division were left out ({' and '.join(changed)} differ): if it has read posts of val "
                "or test here, figures on them may be too good. Adapt it with the `data` settings of "
                "this run."
            )
        if not facts["is_unchanged"]:
            found.append(
                f"The weights of `model.{name}` have changed since `psy-agents adapt` wrote them."
            )
    return found
