"""What a scorer decides by: criteria, thresholds and prevalence."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from psy_agents_noaug.config.schema import ScoringConfig
from psy_agents_noaug.data.corpus import read_criteria
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.errors import ConfigError, DataError, first_of
from psy_agents_noaug.metrics.calibration import at_prevalence
from psy_agents_noaug.tasks.base import DecisionColumns, DecisionRule

logger = logging.getLogger(__name__)


def ids_of(criteria: Iterable[Criterion]) -> list[str]:
    """Return the ids of criteria, in their order."""
    return [criterion.criterion_id for criterion in criteria]


def chosen_criteria(options: ScoringConfig, trained: Sequence[Criterion]) -> list[Criterion]:
    """Return the wanted criteria, in the order of the training, then of the file.

    Raises:
        ConfigError: naming the ids that are in neither.
        DataError: the file has faults, or another text for a criterion of the training.
    """
    known = {criterion.criterion_id: criterion for criterion in trained}
    wanted = options.criteria
    if options.criteria_file is not None:
        path = Path(options.criteria_file)
        own = [Criterion(c.criterion_id, c.name, c.text) for c in read_criteria(path, columns={})]
        changed = [c.criterion_id for c in own if known.get(c.criterion_id, c).text != c.text]
        if changed:
            raise DataError(
                f"{path.name}: these criteria have another text than the model was trained with: "
                f"{first_of(changed)}. Give them ids of their own."
            )
        if wanted is None:
            wanted = ids_of(own)
        known = {**{c.criterion_id: c for c in own}, **known}
        known = {name: known[name] for name in [*ids_of(trained), *ids_of(own)]}
    if wanted is None:
        return list(trained)
    if absent := [name for name in wanted if name not in known]:
        raise ConfigError(
            f"`criteria` must be ids of {', '.join(known)}, but there are also "
            f"{first_of(absent)}. Describe new ones in `criteria_file`."
        )
    return [criterion for name, criterion in known.items() if name in set(wanted)]


def _by_id(
    value: float | Mapping[str, float], ids: Sequence[str], *, name: str
) -> dict[str, float]:
    """Return a setting by criterion.

    Raises:
        ConfigError: it names a criterion that is not predicted.
    """
    own = dict(value) if isinstance(value, Mapping) else dict.fromkeys(ids, value)
    if unknown := [key for key in own if key not in ids]:
        raise ConfigError(
            f"`{name}` must be of criteria that are predicted, but {first_of(unknown)} are not."
        )
    return own


def with_thresholds(
    rule: DecisionRule, options: ScoringConfig, ids: Sequence[str], path: Path
) -> DecisionRule:
    """Return the rule with the thresholds of the options.

    Raises:
        ConfigError: the task has none, or one is absent.
    """
    if "thresholds" not in rule:
        if options.threshold is not None:
            raise ConfigError(f"`threshold` has no effect: {path} predicts no probability.")
        return rule
    own = {}
    if options.threshold is not None:
        own = _by_id(options.threshold, ids, name="threshold")
    thresholds = {name: own.get(name, value) for name, value in rule["thresholds"].items()}
    if absent := [name for name, value in thresholds.items() if value is None]:
        raise ConfigError(
            f"{path} has no threshold for criteria that it was not trained on: give `threshold` for "
            f"{first_of(absent)}."
        )
    changed = {**rule, "thresholds": thresholds}
    if "posts" in rule:
        changed["posts"] = with_thresholds(rule["posts"], options, ids, path)
    return changed


def wanted_prevalence(
    options: ScoringConfig, rules: Sequence[DecisionRule], *, ids: Sequence[str], path: Path
) -> dict[str, float]:
    """Return the prevalence of each criterion among the posts to predict.

    Args:
        options: have it.
        rules: what rows are decided by.
        ids: of the criteria.
        path: of the checkpoint, for error messages.

    Raises:
        ConfigError: the checkpoint does not say at which one it was calibrated.
    """
    if options.prevalence is None:
        return {}
    if not any(rule.get("prevalence") for rule in rules):
        raise ConfigError(
            f"`prevalence` has no effect on {path}: what is predicted is not calibrated, or it is of "
            "version 0.2.0 or earlier and does not know at which prevalence that was."
        )
    wanted = _by_id(options.prevalence, ids, name="prevalence")
    known = {name for rule in rules for name, share in rule.get("prevalence", {}).items() if share}
    if unknown := [name for name in wanted if name not in known]:
        logger.warning(
            "`prevalence` has no effect on %s: val has no pair that meets it, or the model was not "
            "trained on it.",
            first_of(unknown),
        )
    return wanted


def with_prevalence(
    columns: DecisionColumns,
    examples: Sequence[Example],
    *,
    fitted: Mapping[str, float | None],
    wanted: Mapping[str, float],
) -> DecisionColumns:
    """Insert `probability_at_prevalence` before the decision.

    NaN: of criteria without a wanted prevalence, that nothing was calibrated for, or that all or none of
    the pairs of val meet.
    """
    names = [example.criterion_id for example in examples]
    before, after = (
        np.asarray([known.get(name) or np.nan for name in names]) for known in (fitted, wanted)
    )
    calibrated = np.asarray(columns.get("calibrated_probability", np.full(len(names), np.nan)))
    usable = np.isfinite(before) & (before < 1) & np.isfinite(after) & np.isfinite(calibrated)
    shifted = np.full(len(names), np.nan)
    shifted[usable] = at_prevalence(calibrated[usable], fitted=before[usable], wanted=after[usable])
    found: DecisionColumns = {}
    for name, value in columns.items():
        if name == "decision":
            found["probability_at_prevalence"] = shifted
        found[name] = value
    return found


def rule_of_posts(rule: DecisionRule) -> DecisionRule:
    """Return the rule of posts whose sentences are judged.

    A checkpoint of 0.2.0 or earlier has none, nor has one that was trained on annotated sentences alone:
    a post is met if a sentence is, and is not calibrated.
    """
    return rule.get("posts") or {**rule, "calibration": None, "prevalence": {}}
