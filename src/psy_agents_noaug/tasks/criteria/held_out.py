"""The labels of criteria that were held out of training."""

from collections.abc import Mapping, Sequence

import numpy as np

from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import HELD_OUT, Example
from psy_agents_noaug.metrics.baselines import tfidf_similarities
from psy_agents_noaug.metrics.classification import fit_thresholds
from psy_agents_noaug.metrics.held_out import held_out_labels
from psy_agents_noaug.tasks.base import DecisionRule, MetricValues, flat_metrics
from psy_agents_noaug.tasks.criteria.pairs import pair_predictions

# Stands for a criterion without pairs where thresholds are fitted; no criterion has this id.
UNSEEN = ""
THRESHOLD = "global_threshold"


def global_threshold(rule: DecisionRule) -> float | None:
    """Return the threshold of criteria without pairs in val; None if the rule does not have it.

    Rules of 0.2.0 and earlier have it only where all criteria share it.
    """
    shared = set((rule.get("thresholds") or {}).values())
    found: float | None = rule.get(THRESHOLD, shared.pop() if len(shared) == 1 else None)
    return found


def rule_without_fit(rule: DecisionRule, examples: Sequence[Example]) -> DecisionRule:
    """Return the rule for pairs whose criteria nothing was fitted on: one threshold, no calibration."""
    criteria = {example.criterion_id for example in examples}
    return {
        **rule,
        "thresholds": dict.fromkeys(criteria, global_threshold(rule)),
        "calibration": None,
    }


def label_report(
    probabilities: np.ndarray,
    *,
    rule: DecisionRule,
    criteria: Sequence[Criterion],
    trained: Sequence[Criterion],
    examples: Mapping[str, Sequence[Example]],
) -> MetricValues:
    """Return the metrics of `metrics.held_out.held_out_labels`.

    The cut-off of the baseline is the best on val over the trained criteria.

    Args:
        probabilities: of the pairs of `HELD_OUT`, `[pairs]`.
        rule: fitted on val.
        criteria: the held-out ones.
        trained: the others.
        examples: by split.
    """
    val, held_out = examples["val"], examples[HELD_OUT]
    judged = [*val, *held_out]
    similarities = tfidf_similarities(
        train_texts=[example.text for example in examples["train"]],
        criterion_texts={c.criterion_id: c.text for c in (*trained, *criteria)},
        texts=[example.text for example in judged],
        criterion_ids=[example.criterion_id for example in judged],
    )
    trained_ids = [criterion.criterion_id for criterion in trained]
    cutoffs = fit_thresholds(
        pair_predictions(val, similarities[: len(val)]),
        criteria=[*trained_ids, UNSEEN],
        mode="global",
        min_support=0,
    )
    threshold = global_threshold(rule)
    assert threshold is not None  # `absent_from` refuses rules without one
    return flat_metrics(
        held_out_labels(
            pair_predictions(held_out, probabilities),
            pair_predictions(held_out, similarities[len(val) :]),
            criteria=[criterion.criterion_id for criterion in criteria],
            threshold=threshold,
            baseline_threshold=cutoffs[UNSEEN],
        )
    )
