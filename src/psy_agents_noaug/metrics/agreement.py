"""Agreement of several annotators on the labels of pairs, and on the words of their evidence.

Only pairs that two annotators or more have seen count. Of each criterion, and as the mean over criteria:

- `alpha`: Krippendorff's alpha, nominal, any number of annotators, any of them absent (Krippendorff
  2011, "Computing Krippendorff's alpha-reliability").
- `fleiss_kappa`: needs the same number of labels for every pair (Fleiss 1971), so it is over the pairs
  with the most common number, `fleiss_n_annotators`.
- `cohen_kappa`: the mean of Cohen's kappa over the pairs of annotators, each over what both have seen
  (Light 1971, "Measures of response agreement for qualitative data").
- `agreement`: the share of pairs of labels that are the same.
- `positive_agreement`: 2 * both met / labels that say met, over pairs of labels; this is the F1 of one
  annotator against another (Hripcsak and Rothschild 2005).
- `evidence_char_f1`, `evidence_exact_f1`: the F1 of one annotator's evidence against another's, in
  characters and in whole spans, over pairs of labels that both say met and have evidence.

An alpha or kappa is undefined where all labels are the same: chance alone would then agree always.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from psy_agents_noaug.metrics.jackknife import (
    TOO_FEW,
    intervals,
    jackknife_blocks,
    leave_blocks_out,
)
from psy_agents_noaug.metrics.ratios import divide
from psy_agents_noaug.metrics.values import Floats, Ints, Metrics, ValueOrReason, metrics_of

FIGURES = ("alpha", "fleiss_kappa", "cohen_kappa", "agreement", "positive_agreement")
EVIDENCE_FIGURES = ("evidence_char_f1", "evidence_exact_f1")
_NO_PAIRS = "no pair was seen by two annotators"
_SAME = "all labels are the same"

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class AnnotatedPairs:
    """The labels of several annotators, one row per pair of a criterion and a text.

    Args:
        labels: 1 met, 0 not met, -1 not seen, `[pairs, annotators]`.
        criterion_ids: `[pairs]`.
        group_ids: `[pairs]`, the units of the intervals.
        evidence: of each pair the spans of each annotator that says met and marked some.
    """

    labels: Ints
    criterion_ids: NDArray[np.str_]
    group_ids: NDArray[np.str_]
    evidence: Sequence[Mapping[int, Spans]] = ()

    def of(self, criterion: str) -> "AnnotatedPairs":
        """Return the pairs of a criterion that two annotators or more have seen."""
        rows = (self.criterion_ids == criterion) & ((self.labels >= 0).sum(axis=1) >= 2)
        return AnnotatedPairs(
            self.labels[rows],
            self.criterion_ids[rows],
            self.group_ids[rows],
            [self.evidence[row] for row in np.flatnonzero(rows).tolist()] if self.evidence else (),
        )


def agreement_metrics(pairs: AnnotatedPairs, *, criteria: Sequence[str]) -> Metrics:
    """Return the figures of each criterion as `per_criterion/<id>/<figure>`, and their means.

    Means are over the criteria where the figure is defined; `<figure>_n_criteria` counts them.

    Args:
        pairs: of all annotators.
        criteria: those of the figures.

    Returns:
        The figures; `n_pairs`, seen by two annotators or more; `n_annotators` who have seen one of them;
        and for `alpha`, `agreement` and `evidence_char_f1` of each criterion `_ci_low` and `_ci_high`.
    """
    found: dict[str, ValueOrReason] = {}
    values: dict[str, list[float]] = {name: [] for name in (*FIGURES, *EVIDENCE_FIGURES)}
    for criterion in criteria:
        own = _criterion_metrics(pairs.of(criterion))
        found |= {f"per_criterion/{criterion}/{name}": value for name, value in own.items()}
        for name, defined in values.items():
            value = own[name]
            if not isinstance(value, str):
                defined.append(float(value))
    for name, defined in values.items():
        found[name] = float(np.mean(defined)) if defined else "it is defined for no criterion"
        found[f"{name}_n_criteria"] = len(defined)
    return metrics_of(found)


def cohen_kappas(
    pairs: AnnotatedPairs, *, n_annotators: int
) -> dict[tuple[int, int], tuple[int, ValueOrReason]]:
    """Return of each two annotators how many pairs both have seen, and Cohen's kappa on them.

    Args:
        pairs: of one criterion.
        n_annotators: the number of columns of the labels.
    """
    from sklearn.metrics import cohen_kappa_score

    found: dict[tuple[int, int], tuple[int, ValueOrReason]] = {}
    for one, other in combinations(range(n_annotators), 2):
        both = (pairs.labels[:, [one, other]] >= 0).all(axis=1)
        first, second = pairs.labels[both, one], pairs.labels[both, other]
        kappa: ValueOrReason = _NO_PAIRS
        if len(first):
            is_same = len(np.unique(np.concatenate([first, second]))) == 1
            kappa = _SAME if is_same else float(cohen_kappa_score(first, second))
        found[one, other] = len(first), kappa
    return found


def _criterion_metrics(pairs: AnnotatedPairs) -> dict[str, ValueOrReason]:
    labels = pairs.labels
    counts = np.stack([(labels == 0).sum(axis=1), (labels == 1).sum(axis=1)], axis=1)
    blocks, n_blocks = jackknife_blocks(pairs.group_ids)
    sums = leave_blocks_out(_sums_by_block(_pair_sums(counts), blocks, n_blocks))
    samples = {
        "alpha": _alpha(sums),
        "agreement": divide(sums[:, 3], sums[:, 5]),
        "positive_agreement": divide(2 * sums[:, 4], 2 * sums[:, 4] + sums[:, 5] - sums[:, 3]),
    }
    by_text = _sums_by_block(_evidence_sums(pairs), blocks, n_blocks)
    evidence = leave_blocks_out(by_text)
    samples["evidence_char_f1"] = divide(2 * evidence[:, 0], evidence[:, 1])
    samples["evidence_exact_f1"] = divide(2 * evidence[:, 2], evidence[:, 3])
    reasons = {
        "alpha": _SAME,
        "positive_agreement": "nobody says met",
        "evidence_char_f1": "no pair has evidence of two annotators",
        "evidence_exact_f1": "no pair has evidence of two annotators",
    }
    found: dict[str, ValueOrReason] = {
        "n_pairs": len(labels),
        "n_annotators": int((labels >= 0).any(axis=0).sum()),
        "n_disagreements": int((counts > 0).all(axis=1).sum()),
        "evidence_n": int(by_text[:, 4].sum()),
    }
    for name, figures in samples.items():
        reason = reasons.get(name, _NO_PAIRS) if len(labels) else _NO_PAIRS
        found[name] = reason if np.isnan(figures[0]) else float(figures[0])
    found |= _intervals(samples)
    kappas = [
        kappa
        for _, kappa in cohen_kappas(pairs, n_annotators=labels.shape[1]).values()
        if not isinstance(kappa, str)
    ]
    undefined = _SAME if len(labels) else _NO_PAIRS
    found["cohen_kappa"] = float(np.mean(kappas)) if kappas else undefined
    found["cohen_n"] = len(kappas)
    return found | _fleiss(counts)


def _pair_sums(counts: Ints) -> Floats:
    """Return what the figures of pairs are sums of, `[pairs, 6]`.

    Labels that say not met, and met; disagreement, 2 * met * unmet / (labels - 1); and, of pairs of
    labels, those that are the same, those that both say met, and all.

    Args:
        counts: labels that say not met and met, `[pairs, 2]`, at least two in all.
    """
    unmet, met = counts.astype(np.float64).T
    n = unmet + met
    both_met, both_unmet = met * (met - 1) / 2, unmet * (unmet - 1) / 2
    columns = [unmet, met, 2 * unmet * met / (n - 1), both_met + both_unmet, both_met]
    return np.stack([*columns, n * (n - 1) / 2], axis=1)


def _sums_by_block(values: Floats, blocks: Ints, n_blocks: int) -> Floats:
    sums = np.zeros((n_blocks, values.shape[1]))
    np.add.at(sums, blocks, values)
    return sums


def _alpha(sums: Floats) -> Floats:
    """Return alpha of each sample, NaN where all labels are the same.

    1 - observed / expected disagreement, with the coincidences of two values.

    Args:
        sums: of `_pair_sums`, `[samples, 6]`.
    """
    unmet, met, observed = sums[:, 0], sums[:, 1], sums[:, 2]
    return 1 - divide(observed * (unmet + met - 1), 2 * unmet * met)


def _fleiss(counts: Ints) -> dict[str, ValueOrReason]:
    """Return Fleiss' kappa of the pairs with the most common number of labels, the larger of two."""
    numbers = Counter(counts.sum(axis=1).tolist())
    if not numbers:
        return {"fleiss_kappa": _NO_PAIRS, "fleiss_n_annotators": 0, "fleiss_n_pairs": 0}
    n_annotators, n_pairs = max(numbers.items(), key=lambda item: (item[1], item[0]))
    sums = _pair_sums(counts[counts.sum(axis=1) == n_annotators]).sum(axis=0)
    observed = sums[3] / sums[5]
    expected = float(((sums[:2] / sums[:2].sum()) ** 2).sum())
    kappa: ValueOrReason = _SAME
    if sums[0] and sums[1]:
        kappa = float((observed - expected) / (1 - expected))
    return {
        "fleiss_kappa": kappa,
        "fleiss_n_annotators": n_annotators,
        "fleiss_n_pairs": n_pairs,
    }


def _evidence_sums(pairs: AnnotatedPairs) -> Floats:
    """Return sums over each two annotators with evidence, `[pairs, 5]`.

    Shared characters, characters of both, shared spans, spans of both, and the number of twos.
    """
    sums = np.zeros((len(pairs.labels), 5))
    for row, by_annotator in enumerate(pairs.evidence):
        for one, other in combinations(by_annotator.values(), 2):
            first, second = (
                {char for start, end in spans for char in range(start, end)}
                for spans in (one, other)
            )
            exact = set(one) & set(other)
            n_spans = len(set(one)) + len(set(other))
            sums[row] += (len(first & second), len(first) + len(second), len(exact), n_spans, 1)
    return sums


def _intervals(samples: Mapping[str, Floats]) -> dict[str, ValueOrReason]:
    """Return the ends of the intervals of alpha, agreement and the characters' F1."""
    alpha = samples["alpha"]
    # On the scale of [0, 1] of a share. Alpha of labels 0 and 1 is in [-1, 1], and near 1 it is skewed.
    shares = {name: samples[name] for name in ("agreement", "evidence_char_f1")}
    ends = intervals({"alpha": alpha}, bounded=False)
    found: dict[str, ValueOrReason] = {}
    for metrics in (ends, intervals(shares)):
        for key, value in metrics.values.items():
            found[key] = metrics.undefined[key] if value is None else value
    low, high = found["alpha_ci_low"], found["alpha_ci_high"]
    if not isinstance(low, str) and not isinstance(high, str):
        found |= {"alpha_ci_low": max(low, -1.0), "alpha_ci_high": min(high, 1.0)}
    if alpha[0] == 1.0:
        found |= dict.fromkeys(
            ("alpha_ci_low", "alpha_ci_high"), f"{TOO_FEW}: the figure is 1, the end of its range"
        )
    return found
