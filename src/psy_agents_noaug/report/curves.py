"""The parts of a report from prediction lines: curves, reliability, thresholds, counts."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from psy_agents_noaug.metrics.calibration import cross_fitted
from psy_agents_noaug.metrics.classification import PairPredictions, expected_calibration_error
from psy_agents_noaug.metrics.curves import (
    Band,
    OperatingPoints,
    Ranking,
    Reliability,
    band,
    macro_f1_at,
    operating_points,
    reliability,
)
from psy_agents_noaug.metrics.posts import PostDecisions, by_post, pairs_of_posts
from psy_agents_noaug.metrics.tables import format_value
from psy_agents_noaug.metrics.values import Floats, Ints
from psy_agents_noaug.report.facts import SplitFacts
from psy_agents_noaug.report.figures import (
    counts_figure,
    curves_by_criterion_figure,
    curves_figure,
    curves_of_runs_figure,
    picture,
    reliability_figure,
    thresholds_figure,
)
from psy_agents_noaug.report.page import Cell, Part, Pictures, Table, Text

_BAND_POINTS = 30
_CURVE_POINTS = 400  # more than a screen shows
_THRESHOLDS = np.linspace(0.01, 0.99, 99)
_BAND_SOURCE = (
    "Bands are pointwise 95 % intervals of sensitivity or precision at the threshold of each point, "
    "over authors or posts (Clopper and Pearson 1934, for the effective sample of Korn and Graubard "
    "1998): about one point of twenty lies outside by chance."
)
_FITTED_HERE = (
    "cross_fitted/f1_macro"  # a figure of the split on which the decision rule was fitted
)


def ranking_parts(splits: Sequence[SplitFacts], criteria: Mapping[str, str]) -> Iterator[Part]:
    """Yield precision-recall and ROC curves of all pairs, and of each criterion."""
    rankings = {
        split.name: ranking
        for split in splits[:2]
        if split.labels and (ranking := _ranking(split.labels.pairs)).has_both_classes
    }
    if splits[0].name not in rankings:
        return
    first = splits[0]
    own = rankings[first.name]
    curves = {
        name: operating_points(one, max_points=_CURVE_POINTS) for name, one in rankings.items()
    }
    bands = {first.name: band(own, max_points=_BAND_POINTS)}
    shown = {
        key: {
            split.name: f"{split.name}, {short} {format_value(split.figures.get(key))}"
            for split in splits
        }
        for key, short in (("average_precision_micro", "AP"), ("auroc_micro", "AUROC"))
    }
    prevalence = float(own.labels.mean())
    yield Pictures(
        [
            picture(
                f"{kind}_{first.name}",
                curves_figure(curves, bands, shown[key], kind=kind, prevalence=prevalence),
                alt=f"{name}, all pairs: {'; '.join(shown[key].values())}.",
                caption=f"{name}, all pairs together. Dotted: deciding at random. Numbers: the table "
                "below.",
            )
            for kind, key, name in (
                ("precision_recall", "average_precision_micro", "Precision by recall"),
                ("roc", "auroc_micro", "ROC"),
            )
        ]
    )
    yield Text([_BAND_SOURCE], "note")
    yield _points_table(bands[first.name], name=f"curves_{first.name}", split=first.name)
    assert first.labels is not None
    pairs = first.labels.pairs
    by_criterion = _curves_with_bands(
        {one: _ranking(pairs.take(pairs.criterion_ids == one)) for one in criteria}
    )
    for kind, key, name in (
        ("precision_recall", "average_precision", "Precision by recall"),
        ("roc", "auroc", "ROC"),
    ):
        yield from _small_curves(first, by_criterion, kind=kind, key=key, name=name, prefix="")


def _curves_with_bands(
    rankings: Mapping[str, Ranking],
) -> dict[str, tuple[OperatingPoints, Band]]:
    """Return the curve of each ranking that has labels of both classes, with its band."""
    return {
        name: (
            operating_points(ranking, max_points=_CURVE_POINTS),
            band(ranking, max_points=_BAND_POINTS),
        )
        for name, ranking in rankings.items()
        if ranking.has_both_classes
    }


def ranking_parts_of_runs(runs: Mapping[str, PairPredictions], *, split: str) -> Iterator[Part]:
    """Yield the precision-recall and ROC curve of each run, whose scores are not comparable.

    Args:
        runs: what each has predicted, by its name.
        split: that is judged.
    """
    rankings = [own for pairs in runs.values() if (own := _ranking(pairs)).has_both_classes]
    if not rankings:
        return
    curves = [operating_points(own, max_points=_CURVE_POINTS) for own in rankings]
    prevalence = float(np.mean(np.concatenate([own.labels for own in rankings])))
    yield Pictures(
        [
            picture(
                f"{kind}_{split}",
                curves_of_runs_figure(curves, kind=kind, prevalence=prevalence),
                alt=f"{name} of each of {len(curves)} runs.",
                caption=f"{name}, all pairs of a run together, a line for each of {len(curves)} runs. "
                "Dotted: deciding at random. Scores of two models are not comparable, so there is no "
                "pooled curve. Numbers: the table of runs.",
            )
            for kind, name in (("precision_recall", "Precision by recall"), ("roc", "ROC"))
        ]
    )


def detection_parts(split: SplitFacts, criteria: Mapping[str, str]) -> Iterator[Part]:
    """Yield how well the best span's score tells pairs with evidence from pairs without."""
    rankings = {one: split.detection[one] for one in criteria if one in split.detection}
    yield from _small_curves(
        split,
        _curves_with_bands(rankings),
        kind="precision_recall",
        key="evidence_detection_average_precision",
        name="Precision by recall of finding pairs with evidence",
        prefix="detection_",
    )


def _small_curves(
    split: SplitFacts,
    by_criterion: Mapping[str, tuple[OperatingPoints, Band]],
    *,
    kind: str,
    key: str,
    name: str,
    prefix: str,
) -> Iterator[Part]:
    if not by_criterion:
        return
    short = "AUROC" if kind == "roc" else "AP"
    values = {
        one: format_value(split.figures.get(f"per_criterion/{one}/{key}")) for one in by_criterion
    }
    curves = {f"{one}: {short} {values[one]}": own for one, own in by_criterion.items()}
    yield Pictures(
        [
            picture(
                f"{prefix}{kind}_by_criterion_{split.name}",
                curves_by_criterion_figure(curves, split=split.name, kind=kind),
                alt=f"{name} of each criterion on {split.name}: {'; '.join(curves)}.",
                caption=f"{name}, by criterion, {split.name}, with pointwise 95 % bands. Numbers: the "
                "tables by criterion.",
                is_wide=True,
            )
        ]
    )


def calibration_parts(splits: Sequence[SplitFacts], criteria: Sequence[str]) -> Iterator[Part]:
    """Yield how often pairs of each probability are met, before and after calibration."""
    pictures, tables = [], []
    for split in splits:
        if split.labels is None:
            continue
        pairs, calibrated = split.labels.pairs, split.labels.calibrated
        note = ""
        if calibrated is not None and _FITTED_HERE in split.figures:
            # As in the metrics: judged on posts that the calibration has not seen.
            calibrated = cross_fitted(pairs, criteria=criteria)
            note = " Calibrated is by what the other fifths of the split say."
        before = reliability(pairs)
        after = reliability(calibrated) if calibrated is not None else None
        gaps = f"ECE {_ece(pairs)} raw"
        if calibrated is not None:
            gaps += f", {_ece(calibrated)} calibrated"
        pictures.append(
            picture(
                f"reliability_{split.name}",
                reliability_figure(before, after),
                alt=f"Share of met pairs by predicted probability on {split.name}: {gaps}.",
                caption=f"Reliability on {split.name}: on the dotted line probabilities are right. Bars "
                f"are 95 % intervals of the share.{note} Numbers: the table below.",
            )
        )
        tables.append(_bins_table(before, after, split=split.name))
    if pictures:
        yield Pictures(pictures)
    yield from tables


def _ece(pairs: PairPredictions) -> str:
    return format_value(expected_calibration_error(pairs.labels, pairs.probabilities))


def threshold_parts(
    splits: Sequence[SplitFacts], criteria: Mapping[str, str], *, fitted_on: str
) -> Iterator[Part]:
    """Yield macro-F1 by the threshold, with those in use marked.

    Args:
        splits: the first two are drawn.
        criteria: the names, by id.
        fitted_on: what the thresholds were fitted on.
    """
    curves: dict[str, Floats] = {}
    for split in splits[:2]:
        if split.labels is not None:
            values = macro_f1_at(
                split.labels.pairs, criteria=list(criteria), thresholds=_THRESHOLDS
            )
            if not np.isnan(values).all():
                curves[split.name] = values
    if not curves:
        return
    figures = splits[0].figures
    keys = [f"per_criterion/{one}/threshold" for one in criteria]
    fitted = sorted({figures[key] for key in keys if key in figures})
    best = {name: float(_THRESHOLDS[np.nanargmax(values)]) for name, values in curves.items()}
    says = "; ".join(f"{name} highest at {one:.2f}" for name, one in best.items())
    used = ", ".join(f"{one:.3f}" for one in fitted)
    yield Pictures(
        [
            picture(
                "thresholds",
                thresholds_figure(_THRESHOLDS, curves, fitted),
                alt=f"Macro-F1 by threshold: {says}; in use {used}.",
                caption=f"Macro-F1 if one threshold decided all criteria. In use: {used}, fitted on "
                f"{fitted_on} over bootstrap samples, not at the highest point. Numbers: the table "
                "below.",
            )
        ]
    )
    rows = [
        [f"{threshold:.2f}", *(f"{values[row]:.3f}" for values in curves.values())]
        for row, threshold in enumerate(_THRESHOLDS)
        if row % 5 == 4
    ]
    head = ["threshold", *(f"macro-F1, {name}" for name in curves)]
    yield Table("thresholds", "Macro-F1 by threshold", head, rows, is_folded=True)


def symptom_counts(split: SplitFacts, criteria: Sequence[str]) -> Ints | None:
    """Return how many posts have so many criteria met, `[gold, decided]`, both from 0.

    Posts whose sentences are judged are decided as the figures of whole posts are: by their most
    probable sentence and the thresholds of posts. None where there are no such posts.
    """
    if split.labels is None:
        return None
    pairs, post_ids = split.labels.pairs, split.labels.post_ids
    decided = split.labels.decisions.astype(bool)
    keys = {one: f"per_post/per_criterion/{one}/threshold" for one in criteria}
    if all(key in split.figures for key in keys.values()):
        pairs, post_ids = pairs_of_posts(pairs, post_ids)
        cutoffs = np.array([split.figures[keys[one]] for one in pairs.criterion_ids])
        decided = pairs.probabilities >= cutoffs
    posts = by_post(pairs, decisions=decided, post_ids=post_ids, criteria=list(criteria))
    return counts_of([posts])


def counts_of(trainings: Sequence[PostDecisions]) -> Ints | None:
    """Return how many posts have so many criteria met, `[gold, decided]`; None without posts.

    Args:
        trainings: decisions on the same posts, each of which counts.
    """
    counts = np.zeros((trainings[0].labels.shape[1] + 1,) * 2, dtype=np.int64)
    for posts in trainings:
        np.add.at(counts, (posts.labels.sum(axis=1), posts.decisions.sum(axis=1)), 1)
    if not counts.any():
        return None
    highest = int(max(np.argwhere(counts).max(), 1))
    return counts[: highest + 1, : highest + 1]


def count_parts(counts: Ints | None, *, split: str, note: str = "") -> Iterator[Part]:
    """Yield how many criteria are met per post, by gold and by decision.

    Args:
        counts: from `counts_of`.
        split: that is judged.
        note: ends the caption.
    """
    if counts is None:
        return
    right = int(np.trace(counts))
    yield Pictures(
        [
            picture(
                f"symptom_counts_{split}",
                counts_figure(counts),
                alt=f"Posts by criteria met and decided met: the count is right in {right} of "
                f"{int(counts.sum())} posts.",
                caption=f"Posts by the number of criteria met, {split}. In the frames the count "
                f"is right; below them too many are decided met.{note} Numbers: the table below.",
            )
        ]
    )
    head = ["met", *(f"{n} decided" for n in range(len(counts)))]
    rows = [[str(n), *(str(posts) for posts in row)] for n, row in enumerate(counts)]
    yield Table(
        f"symptom_counts_{split}",
        f"Posts by criteria met, {split}",
        head,
        rows,
        is_folded=True,
    )


def _ranking(pairs: PairPredictions) -> Ranking:
    return Ranking(pairs.labels, pairs.probabilities, pairs.group_ids)


def _points_table(found: Band, *, name: str, split: str) -> Table:
    points = found.points
    rows: list[list[str | Cell]] = [
        [
            f"{points.thresholds[row]:.3f}",
            _share(points.recall[row], found.recall[:, row]),
            _share(points.precision[row], found.precision[:, row]),
            f"{1 - points.false_positive_rate[row]:.3f}",
        ]
        for row in range(len(points.thresholds))
    ]
    head = ["threshold", "sensitivity", "precision", "specificity"]
    return Table(name, f"Points of the curves, {split}", head, rows, left=0, is_folded=True)


def _bins_table(before: Reliability, after: Reliability | None, *, split: str) -> Table:
    rows: list[list[str | Cell]] = [
        [
            name,
            f"{bins.probability[row]:.3f}",
            _share(bins.share[row], bins.interval[:, row]),
            str(bins.n_pairs[row]),
        ]
        for name, bins in (("raw", before), ("calibrated", after))
        if bins is not None
        for row in range(len(bins.n_pairs))
    ]
    head = ["probabilities", "mean probability", "share met", "pairs"]
    return Table(f"reliability_{split}", f"Reliability, {split}", head, rows, is_folded=True)


def _share(value: float, ends: Floats) -> Cell:
    low, high = (None if np.isnan(end) else float(end) for end in ends)
    shown = "too few" if low is None else f"{low:.3f}, {high:.3f}"
    return Cell(f"{value:.3f} [{shown}]", float(value), low, high)
