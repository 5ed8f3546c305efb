"""Metrics of evidence spans in (criterion, post) pairs.

A pair is answerable if it has gold spans.

- `evidence_exact_match`, `evidence_token_f1`: SQuAD 2.0 (Rajpurkar et al. 2018). The best predicted span
  is compared with the gold span that fits best. Without gold spans a pair scores 1 if no span is
  predicted, else 0. With gold spans and no prediction it scores 0. (The official script compares texts,
  and takes a lone "." for no answer.) Values are means over the pairs of a criterion. `answerable/` and
  `unanswerable/` are means over these pairs alone: where evidence is rare, predicting none scores high
  over all pairs.
- `evidence_iou_*`: in the manner of ERASER (DeYoung et al. 2020), but by criterion. A span is a set of
  words (see `utils.words`). A predicted span is right if its intersection over union with some gold span
  is at least 0.5. Precision counts predicted spans and recall counts gold spans, each once, so that
  neither exceeds 1.
- `evidence_eraser_iou_f1_*`: as ERASER's own `partial_match_score` computes them, over the pairs of all
  criteria; its recall counts predicted spans, so that two of them on one gold span count twice, and the
  figure may exceed 1.
- `evidence_set_token_*`, `evidence_char_*`: precision, recall and F1 of the words, and of the code
  points, in any predicted span against those in any gold span, over all pairs of a criterion.
- `evidence_detection_*`: whether a pair has evidence at all; average precision ranks by the best span.

Plain keys are means over the criteria for which the metric is defined, which depends on the gold spans
alone. In such a mean, precision is 0 where nothing is predicted. `_micro` pools the pairs of all
criteria. An undefined metric is None, with a reason.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psy_agents_noaug.metrics.classification import (
    PairPredictions,
    classification_metrics,
    criterion_index,
)
from psy_agents_noaug.metrics.intervals import Samples, classification_samples, macro
from psy_agents_noaug.metrics.jackknife import effective_groups, jackknife_blocks, leave_blocks_out
from psy_agents_noaug.metrics.ratios import divide, f1_score, harmonic_mean
from psy_agents_noaug.metrics.squad import exact_match, token_f1
from psy_agents_noaug.metrics.values import (
    NO_PAIRS,
    Floats,
    Ints,
    Metrics,
    ValueOrReason,
    metrics_of,
)
from psy_agents_noaug.utils.words import word_spans

IOU_THRESHOLD = 0.5
WITH_INTERVALS = (
    "evidence_exact_match",
    "evidence_token_f1",
    "answerable/evidence_exact_match",
    "answerable/evidence_token_f1",
    "evidence_iou_f1",
    "evidence_set_token_f1",
    "evidence_char_f1",
    "evidence_detection_f1",
)
_AVERAGE_PRECISION = "evidence_detection_average_precision"

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class SpanPredictions:
    """Gold and predicted spans, one entry per (criterion, post) pair.

    Attributes:
        texts: the posts, [pairs].
        gold: half-open ranges of code points, [pairs]; empty where there is no evidence.
        starts: first code points of the predicted spans, best span first, [pairs, spans]; -1 for none.
        ends: code points after the predicted spans, [pairs, spans]; -1 for none.
        scores: of the predicted spans, [pairs, spans]; falling; -inf for none.
        criterion_ids: strings, [pairs].
        group_ids: strings, the author (or post) of each pair, [pairs]; the units of the intervals.

    Raises:
        ValueError: the entries differ in number, or scores do not fall.
    """

    texts: Sequence[str]
    gold: Sequence[Spans]
    starts: Ints
    ends: Ints
    scores: Floats
    criterion_ids: NDArray[Any]
    group_ids: NDArray[Any]

    def __post_init__(self) -> None:
        lengths = {name: len(value) for name, value in vars(self).items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"all fields must have one entry per pair, but have {lengths} instead."
            )
        if np.isnan(self.scores).any() or (self.scores[:, 1:] > self.scores[:, :-1]).any():
            raise ValueError("`scores` must fall from span to span and not be NaN.")

    @property
    def best_scores(self) -> Floats:
        """Score of each pair's best span, [pairs]; -inf if it has none."""
        return self.scores[:, 0]

    def kept(self, threshold: float) -> list[list[tuple[int, int]]]:
        """Return the spans that are predicted at a decision threshold, see `kept_spans`."""
        return kept_spans(self.starts, self.ends, self.scores, threshold=threshold)

    def take(self, rows: Ints) -> "SpanPredictions":
        """Return the pairs that indices choose."""
        return SpanPredictions(
            texts=[self.texts[row] for row in rows.tolist()],
            gold=[self.gold[row] for row in rows.tolist()],
            starts=self.starts[rows],
            ends=self.ends[rows],
            scores=self.scores[rows],
            criterion_ids=self.criterion_ids[rows],
            group_ids=self.group_ids[rows],
        )

    @cached_property
    def overlaps(self) -> list[NDArray[np.bool_]]:
        """Whether each predicted span matches each gold span; per pair, [spans, gold spans]."""
        return [
            span_overlaps(
                text, [span for span in zip(starts, ends, strict=True) if span[0] >= 0], gold
            )
            for text, gold, starts, ends in zip(
                self.texts, self.gold, self.starts.tolist(), self.ends.tolist(), strict=True
            )
        ]


def kept_spans(
    starts: Ints, ends: Ints, scores: Floats, *, threshold: float
) -> list[list[tuple[int, int]]]:
    """Return each pair's spans that are predicted at a decision threshold, best first.

    A span is kept if its null score difference, which is minus its score, is at most `threshold`.

    Args:
        starts: first code points, [pairs, spans].
        ends: code points after the last, [pairs, spans].
        scores: falling, [pairs, spans].
        threshold: SQuAD's `null_score_diff_threshold`.
    """
    counts = (-scores <= threshold).sum(axis=1)
    return [
        list(zip(row_starts[:count].tolist(), row_ends[:count].tolist(), strict=True))
        for row_starts, row_ends, count in zip(starts, ends, counts.tolist(), strict=True)
    ]


def span_metrics(
    predictions: SpanPredictions, *, criteria: Sequence[str], threshold: float
) -> Metrics:
    """Return all metrics, by the rules in this module's docstring, and `per_criterion/<id>/<metric>`.

    Args:
        predictions: gold and predicted spans of one split.
        criteria: every criterion, including those without pairs.
        threshold: decision threshold, as in `kept_spans`.

    Raises:
        ValueError: a pair's criterion is not in `criteria`.
    """
    detection = classification_metrics(
        _detection(predictions), criteria=criteria, thresholds=dict.fromkeys(criteria, 0.5)
    )
    index = criterion_index(_detection(predictions), criteria)
    counts = np.zeros((len(criteria), 1, N_COUNTS))
    np.add.at(counts[:, 0], index, _pair_counts(predictions, threshold))
    by_criterion = span_figures(counts)
    metrics: dict[str, ValueOrReason] = {
        "evidence_n_pairs": len(predictions.texts),
        "n_answerable": int(counts[:, 0, _N_ANSWERABLE].sum()),
        "n_gold_spans": int(counts[:, 0, _GOLD].sum()),
        "n_predicted_spans": int(counts[:, 0, _PREDICTED].sum()),
        "evidence_n_criteria_in_macro": int((counts[:, 0, _GOLD] > 0).sum()),
    }
    pooled = counts.sum(axis=0, keepdims=True)
    has_gold = counts[:, :, _GOLD] > 0
    has_both = has_gold & (counts[:, :, _N_ANSWERABLE] < counts[:, :, _N])
    for name, values in by_criterion.items():
        if name.endswith("_precision"):
            counted = has_both if "detection" in name else has_gold
            values = np.where(np.isnan(values) & counted, 0.0, values)
        metrics[name] = _value_or_reason(name, macro(values)[0], pooled[0, 0])
    metrics[_AVERAGE_PRECISION] = _lookup(detection, "average_precision_macro")
    for name, values in span_figures(pooled).items():
        if "iou" in name or "set_token" in name or "detection" in name:
            metrics[f"{name}_micro"] = _value_or_reason(name, values[0, 0], pooled[0, 0])
    for name, values in _eraser_metrics(pooled).items():
        metrics[name] = _value_or_reason(name, values[0, 0], pooled[0, 0])
    for position, criterion in enumerate(criteria):
        own: dict[str, ValueOrReason] = {
            "evidence_n_pairs": int(counts[position, 0, _N]),
            "n_answerable": int(counts[position, 0, _N_ANSWERABLE]),
            **{
                name: _value_or_reason(name, values[position, 0], counts[position, 0])
                for name, values in by_criterion.items()
            },
            _AVERAGE_PRECISION: _lookup(detection, f"per_criterion/{criterion}/average_precision"),
        }
        metrics |= {f"per_criterion/{criterion}/{name}": value for name, value in own.items()}
    return metrics_of(metrics)


def span_samples(
    predictions: SpanPredictions, *, criteria: Sequence[str], threshold: float
) -> Samples:
    """Return the figures behind the intervals of a split's metrics. The threshold is fixed.

    Returns:
        The keys in WITH_INTERVALS, ERASER's F1s, and the detection's average precision.
    """
    detection = _detection(predictions)
    index = criterion_index(detection, criteria)
    blocks, n_blocks = jackknife_blocks(predictions.group_ids)
    counts = np.zeros((len(criteria), n_blocks, N_COUNTS))
    np.add.at(counts, (index, blocks), _pair_counts(predictions, threshold))
    samples = leave_blocks_out(counts)
    figures = span_figures(samples)
    ranking = classification_samples(
        detection, criteria=criteria, thresholds=dict.fromkeys(criteria, 0.5)
    )
    ratios = {
        **{key: macro(figures[key]) for key in WITH_INTERVALS},
        **_eraser_metrics(samples.sum(axis=0)),
    }
    return Samples(
        {**ratios, _AVERAGE_PRECISION: ranking.values["average_precision_macro"]},
        shares={"evidence_exact_match": len(set(predictions.group_ids.tolist()))},
        ratios=dict.fromkeys(ratios, effective_groups(predictions.group_ids)),
    )


def fit_null_threshold(predictions: SpanPredictions, *, criteria: Sequence[str]) -> float:
    """Return the `null_score_diff_threshold` that maximises `evidence_iou_f1`.

    Candidates are the midpoints between neighbouring distinct scores, one that keeps every span, one
    that keeps none, and 0. Of equally good candidates the nearest to 0 is taken, then the smaller.
    Without gold spans the threshold is 0.
    """
    index = criterion_index(_detection(predictions), criteria)
    span_scores = [row[np.isfinite(row)] for row in predictions.scores]
    distinct = np.unique(np.concatenate([*span_scores, np.zeros(0)]))
    if not len(distinct) or not any(predictions.gold):
        return 0.0
    middles = (distinct[1:] + distinct[:-1]) / 2
    cutoffs = np.concatenate([[distinct[0] - 1, distinct[-1] + 1, 0.0], middles])
    predicted: list[list[float]] = [[] for _ in criteria]
    right: list[list[float]] = [[] for _ in criteria]
    found: list[list[float]] = [[] for _ in criteria]
    n_gold = np.zeros(len(criteria))
    for criterion, scores, overlaps in zip(
        index.tolist(), span_scores, predictions.overlaps, strict=True
    ):
        predicted[criterion] += scores.tolist()
        right[criterion] += scores[overlaps.any(axis=1)].tolist()
        # A gold span is found if the best of the spans that match it is kept.
        found[criterion] += [max(scores[fits]) for fits in overlaps.T if fits.any()]
        n_gold[criterion] += overlaps.shape[1]

    def at_least(lists: list[list[float]]) -> Floats:
        return np.stack(
            [len(scores) - np.searchsorted(np.sort(scores), cutoffs) for scores in lists]
        ).astype(float)

    f1 = f1_score(at_least(right), at_least(predicted), n_gold[:, None], found=at_least(found))
    mean = f1[n_gold > 0].mean(axis=0)
    best = np.flatnonzero(mean >= mean.max() - 1e-12)
    thresholds = 0.0 - cutoffs[best]
    return float(min(thresholds, key=lambda value: (abs(value), value)))


# The counts of a pair; all metrics are ratios of their sums.
(
    _N,
    _N_ANSWERABLE,
    _EXACT,
    _F1,
    _CORRECT_NONE,
    _PREDICTED,
    _RIGHT,
    _GOLD,
    _FOUND,
    _WORDS_BOTH,
    _WORDS_PREDICTED,
    _WORDS_GOLD,
    _CHARS_BOTH,
    _CHARS_PREDICTED,
    _CHARS_GOLD,
    _DETECTED,
    _FALSE_ALARM,
    _MISSED,
    _PREDICTING,
    _SHARE_OF_PREDICTED,
    _SHARE_OF_GOLD,
) = range(21)
N_COUNTS = 21


def _pair_counts(predictions: SpanPredictions, threshold: float) -> Floats:
    """Return the counts of each pair, [pairs, counts]."""
    counts = np.zeros((len(predictions.texts), N_COUNTS))
    for index, (text, gold, kept, overlaps) in enumerate(
        zip(
            predictions.texts,
            predictions.gold,
            predictions.kept(threshold),
            predictions.overlaps,
            strict=True,
        )
    ):
        fits = overlaps[: len(kept)]
        exact, own_f1 = best_answer(text, kept, gold)
        counts[index] = matched_counts(
            [bool(row.any()) for row in fits],
            [bool(column.any()) for column in fits.T],
            exact=exact,
            token_f1=own_f1,
        )
        if gold or kept:
            words = _words(text)
            counts[index, _WORDS_BOTH : _WORDS_GOLD + 1] = _overlap_counts(
                _union([_words_in(words, span) for span in kept], len(words)),
                _union([_words_in(words, span) for span in gold], len(words)),
            )
            counts[index, _CHARS_BOTH : _CHARS_GOLD + 1] = _overlap_counts(
                _union([_code_points_in(len(text), span) for span in kept], len(text)),
                _union([_code_points_in(len(text), span) for span in gold], len(text)),
            )
    return counts


def best_answer(text: str, kept: Spans, gold: Spans) -> tuple[float, float]:
    """Return exact match and token F1 of a pair's best predicted span, by SQuAD 2.0's rules.

    Args:
        text: of the post.
        kept: the predicted spans, best first.
        gold: the gold spans.
    """
    if not kept or not gold:
        return float(not kept and not gold), float(not kept and not gold)
    answer, golds = text[slice(*kept[0])], [text[start:end] for start, end in gold]
    return exact_match(answer, golds), token_f1(answer, golds)


def matched_counts(
    right: Iterable[bool], found: Iterable[bool], *, exact: float, token_f1: float
) -> Floats:
    """Return the counts of a pair, [N_COUNTS]; those of its words and code points are 0.

    Args:
        right: whether each predicted span is right, best first.
        found: whether each gold span is found.
        exact: exact match of the best span, from `best_answer`.
        token_f1: likewise.
    """
    row = np.zeros(N_COUNTS)
    right, found = list(right), list(found)
    n_predicted, n_gold = len(right), len(found)
    row[_N], row[_N_ANSWERABLE] = 1, n_gold > 0
    row[_EXACT], row[_F1] = (exact, token_f1) if n_gold else (0.0, 0.0)
    row[_CORRECT_NONE] = not n_gold and not n_predicted
    row[_PREDICTED], row[_RIGHT] = n_predicted, sum(right)
    row[_GOLD], row[_FOUND] = n_gold, sum(found)
    row[_DETECTED] = n_gold > 0 and n_predicted > 0
    row[_FALSE_ALARM] = n_predicted > 0 and not n_gold
    row[_MISSED] = n_gold > 0 and not n_predicted
    row[_PREDICTING] = n_predicted > 0
    row[_SHARE_OF_PREDICTED] = row[_RIGHT] / n_predicted if n_predicted else 0.0
    row[_SHARE_OF_GOLD] = row[_RIGHT] / n_gold if n_gold else 0.0
    return row


def span_figures(counts: Floats) -> dict[str, Floats]:
    """Return metrics, [criteria, samples], from [criteria, samples, counts]; NaN if undefined."""
    c = np.moveaxis(counts, -1, 0)
    metrics: dict[str, Floats] = {}
    for name, score in (("evidence_exact_match", _EXACT), ("evidence_token_f1", _F1)):
        metrics |= {
            name: divide(c[score] + c[_CORRECT_NONE], c[_N]),
            f"answerable/{name}": divide(c[score], c[_N_ANSWERABLE]),
            f"unanswerable/{name}": divide(c[_CORRECT_NONE], c[_N] - c[_N_ANSWERABLE]),
        }
    # `found` is given even where it equals `right`, so that all span F1s are computed alike.
    for name, right, predicted, found, gold in (
        ("iou", _RIGHT, _PREDICTED, _FOUND, _GOLD),
        ("set_token", _WORDS_BOTH, _WORDS_PREDICTED, _WORDS_BOTH, _WORDS_GOLD),
        ("char", _CHARS_BOTH, _CHARS_PREDICTED, _CHARS_BOTH, _CHARS_GOLD),
    ):
        metrics |= {
            f"evidence_{name}_precision": np.where(
                c[gold] > 0, divide(c[right], c[predicted]), np.nan
            ),
            f"evidence_{name}_recall": divide(c[found], c[gold]),
            f"evidence_{name}_f1": f1_score(c[right], c[predicted], c[gold], found=c[found]),
        }
    detections = c[_DETECTED] + c[_FALSE_ALARM]
    # Where every pair has evidence, whoever always finds some would have 1.
    both = (c[_N_ANSWERABLE] > 0) & (c[_N_ANSWERABLE] < c[_N])
    f1 = f1_score(c[_DETECTED], detections, c[_N_ANSWERABLE], found=c[_DETECTED])
    return {
        **metrics,
        "evidence_detection_precision": np.where(both, divide(c[_DETECTED], detections), np.nan),
        "evidence_detection_recall": divide(c[_DETECTED], c[_N_ANSWERABLE]),
        "evidence_detection_f1": np.where(both, f1, np.nan),
    }


def _eraser_metrics(counts: Floats) -> dict[str, Floats]:
    """Return ERASER's own F1s of matching spans, from [..., counts]; NaN without gold spans.

    `pooled` is its micro average, over all spans. `instance` is its macro average: the F1 of mean
    precision, over the pairs with a predicted span, and mean recall, over the pairs with a gold one.
    """
    c = np.moveaxis(counts, -1, 0)
    recall = divide(c[_SHARE_OF_GOLD], c[_N_ANSWERABLE])
    precision = np.nan_to_num(divide(c[_SHARE_OF_PREDICTED], c[_PREDICTING]))
    instance = harmonic_mean(precision, recall)
    return {
        "evidence_eraser_iou_f1_pooled": f1_score(
            c[_RIGHT], c[_PREDICTED], c[_GOLD], found=c[_RIGHT]
        ),
        "evidence_eraser_iou_f1_instance": np.where(c[_GOLD] > 0, instance, np.nan),
    }


def span_overlaps(text: str, predicted: Spans, gold: Spans) -> NDArray[np.bool_]:
    """Return whether each predicted span matches each gold span (word IOU >= 0.5), [predicted, gold]."""
    overlaps = np.zeros((len(predicted), len(gold)), dtype=bool)
    if overlaps.size:
        words = _words(text)
        golds = [_words_in(words, span) for span in gold]
        for row, span in zip(overlaps, predicted, strict=True):
            own = _words_in(words, span)
            row[:] = [_iou(own, other) >= IOU_THRESHOLD for other in golds]
    return overlaps


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 0.0


def _overlap_counts(predicted: NDArray[np.bool_], gold: NDArray[np.bool_]) -> tuple[int, int, int]:
    return int((predicted & gold).sum()), int(predicted.sum()), int(gold.sum())


def _union(sets: Sequence[NDArray[np.bool_]], size: int) -> NDArray[np.bool_]:
    union: NDArray[np.bool_] = np.logical_or.reduce([np.zeros(size, dtype=bool), *sets])
    return union


def _words(text: str) -> Ints:
    return np.array(word_spans(text), dtype=np.int64).reshape(-1, 2)


def _words_in(words: Ints, span: tuple[int, int]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (words[:, 0] < span[1]) & (words[:, 1] > span[0])
    return inside


def _code_points_in(size: int, span: tuple[int, int]) -> NDArray[np.bool_]:
    inside = np.zeros(size, dtype=bool)
    inside[slice(*span)] = True
    return inside


def detection_pairs(
    has_evidence: Sequence[bool],
    best_scores: Floats,
    *,
    criterion_ids: NDArray[Any],
    group_ids: NDArray[Any],
) -> PairPredictions:
    """Return "has evidence" as labels and the rank of each best span, in [0, 1], as probabilities.

    Equal scores share a rank. Pairs without a span, whose score is -inf, have rank 0. All arguments
    are `[pairs]`.
    """
    distinct, ranks = np.unique(best_scores, return_inverse=True)
    return PairPredictions(
        labels=np.array(has_evidence, dtype=np.int64),
        probabilities=ranks / max(len(distinct) - 1, 1),
        criterion_ids=criterion_ids,
        group_ids=group_ids,
    )


def _detection(predictions: SpanPredictions) -> PairPredictions:
    return detection_pairs(
        [bool(gold) for gold in predictions.gold],
        predictions.best_scores,
        criterion_ids=predictions.criterion_ids,
        group_ids=predictions.group_ids,
    )


def _value_or_reason(name: str, value: float, counts: Floats) -> ValueOrReason:
    """Return the value, or the reason why it is undefined for pairs with these summed counts."""
    if not np.isnan(value):
        return float(value)
    if not counts[_N]:
        return NO_PAIRS
    if name.startswith("unanswerable/"):
        return "no pair without evidence"
    if "detection" in name and counts[_N_ANSWERABLE] == counts[_N]:
        return "no pair without evidence"
    return "nothing predicted" if counts[_GOLD] else "no pair with evidence"


def _lookup(metrics: Metrics, key: str) -> ValueOrReason:
    value = metrics.values[key]
    return metrics.undefined[key] if value is None else value
