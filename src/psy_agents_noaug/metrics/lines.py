"""Figures of prediction lines (`predictions/<split>.jsonl`), which hold ids, offsets and numbers alone.

Figures are computed for the whole split and without each block of groups (`metrics.jackknife`), by the
functions that compute those of an evaluation. All lines of a split are about different pairs. Lines of a
cross-validation have `fold`, and are ranked within their fold (`metrics.intervals.decided_samples`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from psy_agents_noaug.metrics.classification import FIXED_THRESHOLD, PairPredictions
from psy_agents_noaug.metrics.intervals import (
    Samples,
    decided_samples,
    macro,
)
from psy_agents_noaug.metrics.jackknife import jackknife_blocks, leave_blocks_out
from psy_agents_noaug.metrics.joint import supported_figures
from psy_agents_noaug.metrics.posts import pairs_of_posts
from psy_agents_noaug.metrics.ratios import f1_score
from psy_agents_noaug.metrics.spans import (
    N_COUNTS,
    detection_pairs,
    matched_counts,
    span_figures,
)
from psy_agents_noaug.metrics.values import Floats, Ints

Line = Mapping[str, Any]

# The counts of a pair: of its label, of both, and, behind them, those of its spans (`metrics.spans`).
_TP, _FP, _FN, _TN, _SUPPORTED, _DECIDED, _MET, _SPANS = range(8)
_NO_FOLD = 0  # folds begin at 1
_OF_LABELS = ("f1_macro", "auroc_macro", "average_precision_macro")


def _f1_macro(counts: Floats) -> Floats:
    """Return macro-F1, `[samples]`, from `[criteria, samples, counts]`; sample 0 is the split itself."""
    tp, fp, fn, tn = (counts[..., outcome] for outcome in (_TP, _FP, _FN, _TN))
    return macro(np.where(fp + tn > 0, f1_score(tp, tp + fp, tp + fn), np.nan))


def _evidence_iou_f1(counts: Floats) -> Floats:
    return macro(span_figures(counts[..., _SPANS:])["evidence_iou_f1"])


def _joint_score(counts: Floats) -> Floats:
    return (_f1_macro(counts) + _evidence_iou_f1(counts)) / 2


# Metrics by their names in `metrics.json`, each with the keys that it needs in a line.
METRICS: dict[str, tuple[Callable[[Floats], Floats], tuple[str, ...]]] = {
    "f1_macro": (_f1_macro, ("decision",)),
    "evidence_iou_f1": (_evidence_iou_f1, ("evidence",)),
    "joint_score": (_joint_score, ("decision", "evidence")),
}


def comparable_metrics(line: Line) -> list[str]:
    """Return the names of the metrics that can be computed from lines like this one."""
    return [name for name, (_, keys) in METRICS.items() if all(key in line for key in keys)]


def line_samples(
    lines: Sequence[Line], *, post_thresholds: Mapping[str, float] | None = None
) -> dict[str, Floats]:
    """Return the figures of one training by their names in `metrics.json`, each `[1 + blocks]`.

    Of labels: macro-F1, AUROC and average precision, and the F1 of each criterion; of evidence: IOU F1,
    token F1, the IOU F1 of each criterion, and, where lines have no label, the detection's average
    precision; of both: `joint_score` and `supported_f1`. A figure that lines of an earlier version do
    not give is absent; NaN is undefined.

    Args:
        lines: of trained criteria, at least one.
        post_thresholds: of whole posts, by criterion, if the pairs are of sentences: adds
            `per_post/...`.
    """
    found: dict[str, Floats] = {}
    has_labels, has_evidence = "decision" in lines[0], "evidence" in lines[0]
    if has_labels:
        found |= _compared(label_samples(lines))
        if post_thresholds is not None:
            of_posts = decided_posts(lines, {_NO_FOLD: post_thresholds}).samples()
            found |= {f"per_post/{key}": values for key, values in _compared(of_posts).items()}
    if has_evidence:
        counts = leave_blocks_out(block_counts([lines], line_blocks([lines]))[0])
        figures = span_figures(counts[..., _SPANS:])
        found["evidence_iou_f1"] = macro(figures["evidence_iou_f1"])
        if all("token_f1" in line for line in lines):  # not in those of 0.2.0 and earlier
            found["evidence_token_f1"] = macro(figures["evidence_token_f1"])
        for position, name in enumerate(_criteria(lines)):
            found[f"per_criterion/{name}/evidence_iou_f1"] = figures["evidence_iou_f1"][position]
        if has_labels:
            found["joint_score"] = (found["f1_macro"] + found["evidence_iou_f1"]) / 2
            of_both = supported_figures(counts[..., _SUPPORTED : _MET + 1])["supported_f1"]
            found["supported_f1"] = macro(of_both)
        else:
            detection = _detection(lines)
            ranked = decided_samples(
                detection,
                detection.probabilities >= FIXED_THRESHOLD,
                criteria=_criteria(lines),
                folds=_folds(lines),
            )
            key = "average_precision_macro"
            found["evidence_detection_average_precision"] = ranked.values[key]
    return found


class DecidedPosts(NamedTuple):
    """Whole posts, by the most probable of their sentences, with their decisions.

    Args:
        pairs: of posts and criteria.
        decisions: whether each pair is decided met, `[pairs]`.
        post_ids: of each pair, `[pairs]`.
        folds: the fold of each pair, `[pairs]`.
    """

    pairs: PairPredictions
    decisions: NDArray[np.bool_]
    post_ids: NDArray[np.str_]
    folds: Ints

    def samples(self) -> Samples:
        """Return the figures of `metrics.intervals.decided_samples`."""
        criteria = np.unique(self.pairs.criterion_ids).tolist()
        return decided_samples(self.pairs, self.decisions, criteria=criteria, folds=self.folds)


def decided_posts(
    lines: Sequence[Line], thresholds: Mapping[int, Mapping[str, float]]
) -> DecidedPosts:
    """Return the posts whose sentences are judged in lines of one training.

    Args:
        lines: of sentences.
        thresholds: of whole posts by fold and criterion; of lines without `fold` they are those of
            fold 0.
    """
    post_ids = np.asarray([line["post_id"] for line in lines])
    fold_of = dict(zip(post_ids.tolist(), _folds(lines).tolist(), strict=True))
    pairs, own_ids = pairs_of_posts(label_pairs(lines), post_ids)
    folds = [fold_of[post_id] for post_id in own_ids.tolist()]
    named = zip(folds, pairs.criterion_ids.tolist(), strict=True)
    cutoffs = np.array([thresholds[fold][name] for fold, name in named])
    return DecidedPosts(pairs, pairs.probabilities >= cutoffs, own_ids, np.asarray(folds))


def post_thresholds_of(figures: Mapping[str, Any], *, prefix: str) -> dict[str, float]:
    """Return the thresholds of whole posts, by criterion; none where posts are judged themselves.

    Args:
        figures: as in metrics.json.
        prefix: of the split and, with it, of a baseline.
    """
    start, end = f"{prefix}per_post/per_criterion/", "/threshold"
    return {
        key.removeprefix(start).removesuffix(end): float(value)
        for key, value in figures.items()
        if key.startswith(start) and key.endswith(end)
    }


def label_pairs(lines: Sequence[Line]) -> PairPredictions:
    """Return the labels and probabilities of lines that have them."""
    return PairPredictions(
        labels=np.asarray([line["label"] for line in lines]),
        probabilities=np.asarray([line["probability"] for line in lines], dtype=np.float64),
        criterion_ids=np.asarray([line["criterion_id"] for line in lines]),
        group_ids=np.asarray(line_groups([lines])),
    )


def label_samples(lines: Sequence[Line]) -> Samples:
    """Return all figures of the labels of lines, by the decisions that are in them."""
    return decided_samples(
        label_pairs(lines),
        np.asarray([line["decision"] for line in lines]) == 1,
        criteria=_criteria(lines),
        folds=_folds(lines),
    )


def _compared(samples: Samples) -> dict[str, Floats]:
    """Return the figures by which systems are compared."""
    of_criteria = [key for key in samples.values if key.startswith("per_") and key.endswith("/f1")]
    return {key: samples.values[key] for key in (*_OF_LABELS, *of_criteria)}


def _folds(lines: Sequence[Line]) -> Ints:
    """Return the fold of each line, `[pairs]`; 0 of a line without."""
    return np.asarray([line.get("fold", _NO_FOLD) for line in lines], dtype=np.int64)


def _detection(lines: Sequence[Line]) -> PairPredictions:
    differences = [line["null_score_diff"] for line in lines]
    return detection_pairs(
        [bool(line["gold_evidence"]) for line in lines],
        np.asarray([-np.inf if value is None else -value for value in differences]),
        criterion_ids=np.asarray([line["criterion_id"] for line in lines]),
        group_ids=np.asarray(line_groups([lines])),
    )


def _criteria(lines: Sequence[Line]) -> list[str]:
    return sorted({line["criterion_id"] for line in lines})


def trained_criteria_lines(trainings: Sequence[Sequence[Line]]) -> list[list[Line]]:
    """Return the lines without those of held-out criteria, of which no figure of a split is."""
    return [[line for line in lines if not line.get("held_out")] for lines in trainings]


def check_same_pairs(trainings: Sequence[Sequence[Line]]) -> None:
    """Raise ValueError if the lines of trainings are about different pairs, or in another order."""
    pairs = [pair_key(line) for line in trainings[0]]
    if any([pair_key(line) for line in lines] != pairs for lines in trainings):
        raise ValueError("All predictions must be about the same pairs, in the same order.")


def pair_key(line: Line) -> tuple[str, str, str]:
    """Return what names the pair of a line."""
    return line["post_id"], line["criterion_id"], line["example_id"]


def line_groups(trainings: Sequence[Sequence[Line]]) -> list[str]:
    """Return the author of each pair, or its post where some lines, of version 0.2, have no author."""
    if all("group_id" in line for lines in trainings for line in lines):
        return [line["group_id"] for line in trainings[0]]
    return [line["post_id"] for line in trainings[0]]


def line_blocks(trainings: Sequence[Sequence[Line]]) -> tuple[Ints, int]:
    """Return the block of each pair, `[pairs]`, and the number of blocks."""
    return jackknife_blocks(np.asarray(line_groups(trainings)))


def block_counts(trainings: Sequence[Sequence[Line]], blocks: tuple[Ints, int]) -> Floats:
    """Return the counts of each training, `[trainings, criteria, blocks, counts]`."""
    of_pair, n_blocks = blocks
    names = [line["criterion_id"] for line in trainings[0]]
    criteria, index = np.unique(names, return_inverse=True)
    counts = np.zeros((len(trainings), len(criteria), n_blocks, _SPANS + N_COUNTS))
    for own, lines in zip(counts, trainings, strict=True):
        np.add.at(own, (index, of_pair), _pair_counts(lines))
    return counts


def _pair_counts(lines: Sequence[Line]) -> Floats:
    """Return the counts of each pair, `[pairs, counts]`."""
    rows = np.zeros((len(lines), _SPANS + N_COUNTS))
    if "decision" in lines[0]:
        met, decided = (
            np.asarray([line[key] for line in lines]) == 1 for key in ("label", "decision")
        )
        outcomes = [met & decided, ~met & decided, met & ~decided, ~met & ~decided]
        rows[:, _TP : _TN + 1] = np.stack(outcomes, axis=1)
    for row, line in zip(rows, lines, strict=True):
        # Pairs whose evidence is unknown are in no evidence metric.
        if line.get("gold_evidence") is None:
            continue
        right = [span["right"] for span in line["evidence"]]
        row[_SPANS:] = matched_counts(
            right,
            [span["found"] for span in line["gold_evidence"]],
            exact=line.get("exact_match", 0.0),
            token_f1=line.get("token_f1", 0.0),
        )
        row[_DECIDED], row[_MET] = row[_TP] + row[_FP], row[_TP] + row[_FN]
        row[_SUPPORTED] = row[_TP] * any(right)
    return rows
