"""Figures of several trainings on the same pairs: pooled over folds, averaged over seeds.

Of a cross-validation, decisions are counted over all folds, each by the thresholds of its own fold, so
that F1 is of all posts at once; a mean of the folds' F1 would be biased where a criterion is rare.
Rankings stay within folds (see `metrics.intervals.decided_samples`). Source: Forman and Scholz 2010,
"Apples-to-apples in cross-validation studies: pitfalls in classifier performance measurement".

Intervals are for other posts (by author) and, with three seeds or more, for other seeds. Those of a
cross-validation take its models as they are: they share training posts, and no estimate of the variance
that this adds is unbiased (Bengio and Grandvalet 2004, "No unbiased estimator of the variance of K-fold
cross-validation").
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from psy_agents_noaug.metrics.comparison import MIN_TRAININGS, interval_of_mean
from psy_agents_noaug.metrics.lines import (
    Line,
    check_same_pairs,
    label_samples,
    line_groups,
    line_samples,
)
from psy_agents_noaug.metrics.values import Floats, Metrics, ValueOrReason, metrics_of

_UNDEFINED = "undefined for a seed"
_TOO_FEW = "too few posts"

Samples = Mapping[str, Floats]  # of a figure: `[trainings, 1 + blocks]`


def training_samples(trainings: Sequence[Sequence[Line]]) -> Samples:
    """Return the figures of each training, whole and without each block of groups.

    Args:
        trainings: lines of trained criteria about the same pairs in the same order,
            `[trainings][pairs]`; with `fold` where there are folds.

    Raises:
        ValueError: lines are about different pairs.
    """
    check_same_pairs(trainings)
    found = [
        {**(label_samples(lines).values if "decision" in lines[0] else {}), **line_samples(lines)}
        for lines in trainings
    ]
    return stacked(found)


def stacked(found: Sequence[Mapping[str, Floats]]) -> Samples:
    """Return the figures of several trainings, `[trainings, 1 + blocks]`, from those of each."""
    return {key: np.stack([samples[key] for samples in found]) for key in found[0]}


def counts(lines: Sequence[Line]) -> dict[str, int]:
    """Return how many posts, groups and pairs there are, and how many pairs of each criterion are met.

    Args:
        lines: of one training.
    """
    found = {
        "n_posts": len({line["post_id"] for line in lines}),
        "n_groups": len(set(line_groups([lines]))),
    }
    labels = [line["label"] for line in lines] if all("label" in line for line in lines) else None
    return found | pair_counts([line["criterion_id"] for line in lines], labels)


def pair_counts(criterion_ids: Sequence[str], labels: Sequence[int] | None) -> dict[str, int]:
    """Return how many pairs there are and, with labels, how many are met; of each criterion too.

    Args:
        criterion_ids: of the pairs.
        labels: 0 or 1; None: pairs have none.
    """
    found = {"n_pairs": len(criterion_ids)}
    n_pairs = Counter(criterion_ids)
    found |= {f"per_criterion/{name}/n_pairs": n_pairs[name] for name in sorted(n_pairs)}
    if labels is not None:
        pairs = zip(criterion_ids, labels, strict=True)
        n_met = Counter(name for name, label in pairs if label)
        found |= {f"per_criterion/{name}/n_positive": n_met[name] for name in sorted(n_pairs)}
        found["n_positive"] = n_met.total()
        found["n_criteria_in_macro"] = sum(0 < n_met[name] < n_pairs[name] for name in n_pairs)
    return found


def pooled_metrics(samples: Samples) -> Metrics:
    """Return the mean over trainings of each figure, with its interval.

    Args:
        samples: from `training_samples`.
    """
    return means(samples, bounded=True)


def pooled_gains(samples: Samples, baseline: Samples) -> Metrics:
    """Return each figure minus that of a baseline, with the paired interval, as `<figure>_gain`.

    Args:
        samples: from `training_samples`.
        baseline: likewise, of one training.
    """
    gains = {
        f"{key}_gain": values - baseline[key] for key, values in samples.items() if key in baseline
    }
    return means(gains, bounded=False)


def means(samples: Samples, *, bounded: bool) -> Metrics:
    """Return the mean over trainings of each figure, with its interval.

    Args:
        samples: as in `training_samples`.
        bounded: whether the figures lie in [0, 1].
    """
    metrics: dict[str, ValueOrReason] = {}
    for key, values in samples.items():
        mean = float(values[:, 0].mean())
        if np.isnan(mean):
            metrics |= dict.fromkeys((key, f"{key}_ci_low", f"{key}_ci_high"), _UNDEFINED)
            continue
        # Two seeds say next to nothing of their spread.
        own = values if len(values) >= MIN_TRAININGS else values.mean(axis=0, keepdims=True)
        found = interval_of_mean(own, bounded=bounded)
        low, high = found or (_TOO_FEW, _TOO_FEW)
        metrics |= {key: mean, f"{key}_ci_low": low, f"{key}_ci_high": high}
    return metrics_of(metrics)
