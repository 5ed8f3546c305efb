"""Metrics of evidence spans in (criterion, post) pairs.

A pair is answerable if it has gold spans. Which figure is what:

- `evidence_exact_match`, `evidence_token_f1`: SQuAD 2.0 (Rajpurkar et al. 2018). The best predicted span
  against the gold span that fits best; without gold, 1 for no prediction and 0 for any, and 0 for no
  prediction with gold (the official script compares texts, to which a lone "." is no answer). Means over
  the pairs of a criterion; `answerable/` and `unanswerable/` part them, because where evidence is rare
  predicting none scores high over all pairs.
- `evidence_iou_*`: ERASER (DeYoung et al. 2020). Spans as sets of words (runs without white space); a
  predicted span is right if its intersection over union with some gold span is at least 0.5. Precision
  is of the predicted spans, recall of the gold spans, each counted once, so that it can't pass 1.
- `evidence_set_token_*`, `evidence_char_*`: precision, recall and F1 of all words, and of all code
  points, in any predicted span against those in any gold span, over all pairs of a criterion.
- `evidence_detection_*`: whether there is evidence at all; average precision ranks by the best span.

Plain keys are means over the criteria for which they are defined, which depends on the gold spans alone;
precision counts 0 in a mean where nothing is predicted. `_micro` pools the pairs of all criteria. An
undefined figure is None, with a reason.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psy_agents_noaug.metrics.classification import (
    NO_PAIRS,
    Figure,
    Floats,
    Ints,
    Metrics,
    PairPredictions,
    classification_metrics,
    criterion_index,
    metrics_of,
)
from psy_agents_noaug.metrics.intervals import (
    bootstrap_intervals,
    draw_group_counts,
    macro,
    percentile_intervals,
)
from psy_agents_noaug.metrics.ratios import divide, f1_score
from psy_agents_noaug.metrics.squad import exact_match, token_f1

IOU_THRESHOLD = 0.5
BOOTSTRAPPED = (
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
_WORD = re.compile(r"\S+")

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class SpanPredictions:
    """Gold and predicted spans, one entry a (criterion, post) pair.

    Attributes:
        texts: the posts, [pairs].
        gold: half-open ranges of code points, [pairs]; empty where there is no evidence.
        starts, ends: predicted ranges, best first, [pairs, spans]; -1 where there is none.
        scores: of the predicted spans, [pairs, spans]; falling; -inf where there is none.
        criterion_ids: strings, [pairs]. group_ids: strings, [pairs]; what the bootstrap resamples.

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
            raise ValueError(f"all entries must be of one number, but are {lengths} instead.")
        if np.isnan(self.scores).any() or (self.scores[:, 1:] > self.scores[:, :-1]).any():
            raise ValueError("`scores` must fall from span to span and not be NaN.")

    @property
    def best_scores(self) -> Floats:
        """Score of each pair's best span, [pairs]; -inf without any."""
        return self.scores[:, 0]

    def kept(self, threshold: float) -> list[list[tuple[int, int]]]:
        """The spans that are predicted at a decision threshold, see `kept_spans`."""
        return kept_spans(self.starts, self.ends, self.scores, threshold=threshold)

    @cached_property
    def overlaps(self) -> list[NDArray[np.bool_]]:
        """Which predicted span is right by which gold span, [spans, golds] for each pair."""
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
    """Spans that win over no evidence by `threshold` (a `null_score_diff_threshold`), best first.

    From [pairs, spans] each. A span's null score difference is minus its score; it is kept if that is at
    most `threshold`.
    """
    counts = (-scores <= threshold).sum(axis=1)
    return [
        list(zip(row_starts[:count].tolist(), row_ends[:count].tolist(), strict=True))
        for row_starts, row_ends, count in zip(starts, ends, counts.tolist(), strict=True)
    ]


def span_metrics(
    predictions: SpanPredictions, *, criteria: Sequence[str], threshold: float
) -> Metrics:
    """All figures at a decision threshold; `per_criterion/<id>/<figure>` besides the means.

    Raises:
        ValueError: a pair's criterion is not in `criteria`.
    """
    detection = classification_metrics(
        _detection(predictions), criteria=criteria, thresholds=dict.fromkeys(criteria, 0.5)
    )
    index = criterion_index(_detection(predictions), criteria)
    counts = np.zeros((len(criteria), 1, _N_COUNTS))
    np.add.at(counts[:, 0], index, _pair_counts(predictions, threshold))
    by_criterion = _figures(counts)
    figures: dict[str, Figure] = {
        "evidence_n_pairs": len(predictions.texts),
        "n_answerable": int(counts[:, 0, _N_ANSWERABLE].sum()),
        "n_gold_spans": int(counts[:, 0, _GOLD].sum()),
        "n_predicted_spans": int(counts[:, 0, _PREDICTED].sum()),
        "evidence_n_posts": len(set(predictions.group_ids.tolist())),
        "evidence_n_criteria_in_macro": int((counts[:, 0, _GOLD] > 0).sum()),
    }
    pooled = counts.sum(axis=0, keepdims=True)
    has_gold = counts[:, :, _GOLD] > 0
    for name, values in by_criterion.items():
        if name.endswith("_precision"):
            values = np.where(np.isnan(values) & has_gold, 0.0, values)
        figures[name] = _figure(name, macro(values)[0], pooled[0, 0])
    figures[_AVERAGE_PRECISION] = _taken(detection, "average_precision_macro")
    for name, values in _figures(pooled).items():
        if "iou" in name or "set_token" in name or "detection" in name:
            figures[f"{name}_micro"] = _figure(name, values[0, 0], pooled[0, 0])
    for position, criterion in enumerate(criteria):
        own: dict[str, Figure] = {
            "evidence_n_pairs": int(counts[position, 0, _N]),
            "n_answerable": int(counts[position, 0, _N_ANSWERABLE]),
            **{
                name: _figure(name, values[position, 0], counts[position, 0])
                for name, values in by_criterion.items()
            },
            _AVERAGE_PRECISION: _taken(detection, f"per_criterion/{criterion}/average_precision"),
        }
        figures |= {f"per_criterion/{criterion}/{name}": value for name, value in own.items()}
    return metrics_of(figures)


def span_intervals(
    predictions: SpanPredictions,
    *,
    criteria: Sequence[str],
    threshold: float,
    n_resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> Metrics:
    """Percentile bootstrap intervals over posts, by the rules of `bootstrap_intervals`.

    Returns:
        `<key>_ci_low` and `<key>_ci_high` for BOOTSTRAPPED and the detection's average precision.
    """
    index = criterion_index(_detection(predictions), criteria)
    ids, groups = np.unique(predictions.group_ids, return_inverse=True)
    keys = (*BOOTSTRAPPED, _AVERAGE_PRECISION)
    if len(ids) < 2:
        reason = "all pairs are of one post" if len(ids) else NO_PAIRS
        return metrics_of({f"{key}_ci_{end}": reason for key in keys for end in ("low", "high")})
    by_group = np.zeros((len(criteria), len(ids), _N_COUNTS))
    np.add.at(by_group, (index, groups), _pair_counts(predictions, threshold))
    draws = draw_group_counts(
        np.random.default_rng(seed), n_groups=len(ids), n_resamples=n_resamples
    )
    whole = np.ones((len(ids), 1), dtype=draws.dtype)
    resampled = np.concatenate([whole, draws], axis=1).astype(float)
    figures = _figures(np.einsum("cgk,gr->crk", by_group, resampled, optimize=True))
    samples = {key: macro(figures[key])[1:] for key in BOOTSTRAPPED}
    intervals = percentile_intervals(samples, confidence=confidence)
    ranking = bootstrap_intervals(
        _detection(predictions),
        criteria=criteria,
        thresholds=dict.fromkeys(criteria, 0.5),
        n_resamples=n_resamples,
        seed=seed,
        confidence=confidence,
    )
    average_precision = {
        f"{_AVERAGE_PRECISION}_ci_{end}": _taken(ranking, f"average_precision_macro_ci_{end}")
        for end in ("low", "high")
    }
    figure = {key: intervals.undefined.get(key, value) for key, value in intervals.values.items()}
    return metrics_of({**figure, **average_precision})  # type: ignore[dict-item]


def fit_null_threshold(predictions: SpanPredictions, *, criteria: Sequence[str]) -> float:
    """The `null_score_diff_threshold` that maximises `evidence_iou_f1`.

    Candidates are the midpoints between neighbouring distinct scores, one that keeps every span, one
    that keeps none, and 0; of equally good ones the nearest to 0 wins, then the smaller. Without any
    gold span it is 0.
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
        # A gold span is found as soon as the best of the spans that fit it is kept.
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


# The counts of a pair; all figures are ratios of their sums.
(
    _N,
    _N_ANSWERABLE,
    _EXACT,
    _F1,
    _RIGHTLY_NONE,
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
) = range(18)
_N_COUNTS = 18


def _pair_counts(predictions: SpanPredictions, threshold: float) -> Floats:
    """[pairs, counts]."""
    counts = np.zeros((len(predictions.texts), _N_COUNTS))
    for row, text, gold, kept, overlaps in zip(
        counts,
        predictions.texts,
        predictions.gold,
        predictions.kept(threshold),
        predictions.overlaps,
        strict=True,
    ):
        answerable = bool(gold)
        row[_N], row[_N_ANSWERABLE] = 1, answerable
        row[_RIGHTLY_NONE] = not gold and not kept
        if gold and kept:
            answer, golds = text[slice(*kept[0])], [text[start:end] for start, end in gold]
            row[_EXACT], row[_F1] = exact_match(answer, golds), token_f1(answer, golds)
        fits = overlaps[: len(kept)]
        row[_PREDICTED], row[_RIGHT] = len(kept), fits.any(axis=1).sum()
        row[_GOLD], row[_FOUND] = len(gold), fits.any(axis=0).sum()
        row[_DETECTED] = answerable and bool(kept)
        row[_FALSE_ALARM] = bool(kept) and not answerable
        row[_MISSED] = answerable and not kept
        if gold or kept:
            words = _words(text)
            row[_WORDS_BOTH : _WORDS_GOLD + 1] = _shared(
                _union([_touched(words, span) for span in kept], len(words)),
                _union([_touched(words, span) for span in gold], len(words)),
            )
            row[_CHARS_BOTH : _CHARS_GOLD + 1] = _shared(
                _union([_covered(len(text), span) for span in kept], len(text)),
                _union([_covered(len(text), span) for span in gold], len(text)),
            )
    return counts


def _figures(counts: Floats) -> dict[str, Floats]:
    """From [criteria, resamples, counts] to [criteria, resamples] each, NaN where undefined."""
    c = np.moveaxis(counts, -1, 0)
    figures: dict[str, Floats] = {}
    for name, of_answers in (("evidence_exact_match", _EXACT), ("evidence_token_f1", _F1)):
        figures |= {
            name: divide(c[of_answers] + c[_RIGHTLY_NONE], c[_N]),
            f"answerable/{name}": divide(c[of_answers], c[_N_ANSWERABLE]),
            f"unanswerable/{name}": divide(c[_RIGHTLY_NONE], c[_N] - c[_N_ANSWERABLE]),
        }
    for name, right, predicted, found, gold in (
        ("iou", _RIGHT, _PREDICTED, _FOUND, _GOLD),
        ("set_token", _WORDS_BOTH, _WORDS_PREDICTED, _WORDS_BOTH, _WORDS_GOLD),
        ("char", _CHARS_BOTH, _CHARS_PREDICTED, _CHARS_BOTH, _CHARS_GOLD),
    ):
        figures |= {
            f"evidence_{name}_precision": _where(c[gold] > 0, divide(c[right], c[predicted])),
            f"evidence_{name}_recall": divide(c[found], c[gold]),
            f"evidence_{name}_f1": f1_score(c[right], c[predicted], c[gold], found=c[found]),
        }
    alarms = c[_DETECTED] + c[_FALSE_ALARM]
    return {
        **figures,
        "evidence_detection_precision": _where(c[_N_ANSWERABLE] > 0, divide(c[_DETECTED], alarms)),
        "evidence_detection_recall": divide(c[_DETECTED], c[_N_ANSWERABLE]),
        "evidence_detection_f1": f1_score(
            c[_DETECTED], alarms, c[_N_ANSWERABLE], found=c[_DETECTED]
        ),
    }


def _where(defined: NDArray[np.bool_], values: Floats) -> Floats:
    kept: Floats = np.where(defined, values, np.nan)
    return kept


def span_overlaps(text: str, predicted: Spans, gold: Spans) -> NDArray[np.bool_]:
    """Which predicted span is right by which gold span, `[predicted, gold]`: word IOU of 0.5 or more."""
    overlaps = np.zeros((len(predicted), len(gold)), dtype=bool)
    if overlaps.size:
        words = _words(text)
        golds = [_touched(words, span) for span in gold]
        for row, span in zip(overlaps, predicted, strict=True):
            own = _touched(words, span)
            row[:] = [_iou(own, other) >= IOU_THRESHOLD for other in golds]
    return overlaps


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 0.0


def _shared(predicted: NDArray[np.bool_], gold: NDArray[np.bool_]) -> tuple[int, int, int]:
    return int((predicted & gold).sum()), int(predicted.sum()), int(gold.sum())


def _union(sets: Sequence[NDArray[np.bool_]], size: int) -> NDArray[np.bool_]:
    union: NDArray[np.bool_] = np.logical_or.reduce([np.zeros(size, dtype=bool), *sets])
    return union


def _words(text: str) -> Ints:
    return np.array([match.span() for match in _WORD.finditer(text)], dtype=np.int64).reshape(-1, 2)


def _touched(words: Ints, span: tuple[int, int]) -> NDArray[np.bool_]:
    touched: NDArray[np.bool_] = (words[:, 0] < span[1]) & (words[:, 1] > span[0])
    return touched


def _covered(size: int, span: tuple[int, int]) -> NDArray[np.bool_]:
    covered = np.zeros(size, dtype=bool)
    covered[slice(*span)] = True
    return covered


def _detection(predictions: SpanPredictions) -> PairPredictions:
    """Evidence or none, ranked by the best span: equal scores share a rank, no span has rank 0."""
    distinct, ranks = np.unique(predictions.best_scores, return_inverse=True)
    return PairPredictions(
        labels=np.array([int(bool(gold)) for gold in predictions.gold], dtype=np.int64),
        probabilities=ranks / max(len(distinct) - 1, 1),
        criterion_ids=predictions.criterion_ids,
        group_ids=predictions.group_ids,
    )


def _figure(name: str, value: float, counts: Floats) -> Figure:
    """The value, or why it is undefined for pairs with these summed counts."""
    if not np.isnan(value):
        return float(value)
    if not counts[_N]:
        return NO_PAIRS
    if name.startswith("unanswerable/"):
        return "no pair without evidence"
    return "nothing predicted" if counts[_GOLD] else "no pair with evidence"


def _taken(metrics: Metrics, key: str) -> Figure:
    value = metrics.values[key]
    return metrics.undefined[key] if value is None else value
