"""The labels of criteria that were held out of training."""

from collections.abc import Iterable, Mapping, Sequence

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
POSTS = "posts"  # in a decision rule: that of posts whose sentences are judged


def global_threshold(rule: DecisionRule) -> float | None:
    """Return the threshold of criteria without pairs in val; None if the rule does not have it.

    Rules of 0.2.0 and earlier have it only where all criteria share it.
    """
    shared = set((rule.get("thresholds") or {}).values())
    found: float | None = rule.get(THRESHOLD, shared.pop() if len(shared) == 1 else None)
    return found


def rule_without_fit(rule: DecisionRule, criterion_ids: Iterable[str]) -> DecisionRule:
    """Return the rule for criteria that nothing was fitted on: one threshold, no calibration."""
    ids = list(criterion_ids)
    unfitted = {
        **rule,
        "thresholds": dict.fromkeys(ids, global_threshold(rule)),
        "calibration": None,
        "prevalence": {},
    }
    if POSTS in rule:
        unfitted[POSTS] = rule_without_fit(rule[POSTS], ids)
    return unfitted


def label_report(
    probabilities: np.ndarray,
    *,
    rule: DecisionRule,
    criteria: Sequence[Criterion],
    trained: Sequence[Criterion],
    examples: Mapping[str, Sequence[Example]],
) -> MetricValues:
    """Return the metrics of `metrics.held_out.held_out_labels`.

    The cut-off of the baseline is the best on val over the trained criteria; where val is a part of
    train, on train, as similarity learns no label. Where a corpus is evaluated
    whole, there is no baseline.

    Args:
        probabilities: of the pairs of `HELD_OUT`, `[pairs]`.
        rule: fitted on val.
        criteria: the held-out ones.
        trained: the others.
        examples: by split.
    """
    threshold = global_threshold(rule)
    assert threshold is not None  # `absent_from` refuses rules without one
    held_out, criterion_ids = examples[HELD_OUT], [c.criterion_id for c in criteria]
    model = pair_predictions(held_out, probabilities)
    if "train" not in examples:
        return flat_metrics(
            held_out_labels(model, None, criteria=criterion_ids, threshold=threshold)
        )
    val = examples.get("val", examples["train"])
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
    return flat_metrics(
        held_out_labels(
            model,
            pair_predictions(held_out, similarities[len(val) :]),
            criteria=criterion_ids,
            threshold=threshold,
            baseline_threshold=cutoffs[UNSEEN],
        )
    )
