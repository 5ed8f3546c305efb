"""How well annotators find each other's labels: the F1 that a model can be held against.

Each annotator is judged against the labels of the others, merged by the same rule
(`MergeRule.references`), and the model against the same labels of the same pairs. All such votes are
counted together, so that an annotator has the weight of what it has seen. Left out are pairs whose votes
are partial (`Example.votes_are_partial`).
"""

from collections.abc import Sequence

import numpy as np

from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.merging import MergeRule
from psy_agents_noaug.metrics.classification import PairPredictions
from psy_agents_noaug.metrics.intervals import Samples, decided_samples
from psy_agents_noaug.metrics.jackknife import intervals
from psy_agents_noaug.metrics.values import value_of
from psy_agents_noaug.tasks.base import MetricValues, flat_metrics

PREFIX = "annotators/"
_FIGURES = ("f1_macro", "f1_micro")


def annotator_metrics(
    examples: Sequence[Example],
    decisions: np.ndarray,
    *,
    rule: MergeRule,
    criteria: Sequence[str],
) -> MetricValues:
    """Return the F1 of the annotators, and that of the model against the same labels.

    Args:
        examples: the pairs of a split.
        decisions: of the model, bool `[pairs]`.
        rule: by which labels are merged.
        criteria: ids, those of the averages.

    Returns:
        `annotators/n_votes`, judged against the others' labels, `n_annotators` and `n_pairs` of them;
        `annotators/f1_macro`, `f1_micro` and `per_criterion/<id>/f1`; the same of the model after
        `annotators/model/`; `annotators/f1_macro_gain`, the model's minus the annotators', paired; with
        intervals. Counts alone where no vote can be judged.
    """
    judged = [
        (index, vote, others)
        for index, example in enumerate(examples)
        if not example.votes_are_partial
        for vote, others in rule.references(example.votes)
    ]
    found: MetricValues = {
        "n_votes": len(judged),
        "n_annotators": len({vote.annotator_id for _, vote, _ in judged}),
        "n_pairs": len({index for index, _, _ in judged}),
    }
    if judged:
        index = np.asarray([index for index, _, _ in judged])
        votes = np.asarray([vote.label for _, vote, _ in judged], dtype=bool)
        pairs = PairPredictions(
            labels=np.asarray([others.label for _, _, others in judged]),
            probabilities=votes.astype(np.float64),
            criterion_ids=np.asarray([examples[own].criterion_id for own in index]),
            group_ids=np.asarray([examples[own].group_id for own in index]),
        )
        people = _samples(pairs, votes, criteria)
        model = _samples(pairs, decisions[index], criteria)
        gain = model.values["f1_macro"] - people.values["f1_macro"]
        found |= {
            **_figures(people),
            **{f"model/{key}": value for key, value in _figures(model).items()},
            "f1_macro_gain": value_of(gain),
            **flat_metrics(intervals({"f1_macro_gain": gain}, bounded=False)),
        }
    return {f"{PREFIX}{key}": value for key, value in found.items()}


def _samples(pairs: PairPredictions, decisions: np.ndarray, criteria: Sequence[str]) -> Samples:
    keys = [*_FIGURES, *(f"per_criterion/{criterion}/f1" for criterion in criteria)]
    return decided_samples(pairs, decisions, criteria=criteria).only(keys)


def _figures(samples: Samples) -> MetricValues:
    values = {key: value_of(figure) for key, figure in samples.values.items()}
    return {**values, **flat_metrics(samples.intervals())}
