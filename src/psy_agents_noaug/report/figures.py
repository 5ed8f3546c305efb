"""Figures: one function each, which draws on a new matplotlib figure.

They are narrow enough for a column of a paper and for a telephone. The colours are those of Okabe and
Ito (2008), which colour-blind readers can tell apart; lines and markers differ too.
"""

import gc
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from psy_agents_noaug.metrics.curves import Band, OperatingPoints, Reliability
from psy_agents_noaug.metrics.values import Floats, Ints
from psy_agents_noaug.report.page import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
_STYLES: Mapping[str, dict[str, Any]] = {
    "test": {"color": BLUE, "linestyle": "-"},
    "all": {"color": BLUE, "linestyle": "-"},
    "val": {"color": VERMILLION, "linestyle": "--"},
    "train": {"color": GREEN, "linestyle": ":"},
}
_CURVE_AXES = {
    "roc": ("1 - specificity", "sensitivity"),
    "precision_recall": ("recall (sensitivity)", "precision (PPV)"),
}
_FAMILY, _FAMILY_NAMES = "DejaVu Sans Light Tables", (1, 4, 16)
_SIZE = (3.5, 2.9)  # inches: a column of two
_SETTINGS: dict[Any, Any] = {
    "text.parse_math": False,  # a name may have a dollar sign
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 5),
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # embedded as TrueType, which publishers ask for
    "svg.fonttype": "path",
    "svg.hashsalt": "psy-agents-noaug",  # the same figure is the same file
}


@dataclass(frozen=True)
class Interval:
    """A row of a figure of intervals.

    Args:
        name: of the row.
        value: None: undefined.
        low: the lower end of the interval; None: there is none.
        high: the upper end.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the style of this module, whatever the user's matplotlibrc says."""
    import matplotlib

    with (
        matplotlib.rc_context(),
        warnings.catch_warnings(),
        _light_font() as family,
        _no_collector(),
    ):
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_SETTINGS, "font.family": family})
        # Names of criteria may be in a script that the font lacks; boxes are drawn for it.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        warnings.filterwarnings("ignore", "Matplotlib currently does not support", UserWarning)
        yield


@contextmanager
def _light_font() -> Iterator[str]:
    """Yield the family of a font for figures: DejaVu Sans, which comes with matplotlib, made lighter.

    The tables for typesetting are left out, which take half of the time of making a PDF: fontTools cuts
    each of them down to the letters of each figure.
    """
    import matplotlib
    from fontTools.ttLib import TTFont
    from matplotlib.font_manager import fontManager

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    with (
        TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        TTFont(path, recalcTimestamp=False) as font,
    ):
        for table in ("GSUB", "GPOS", "GDEF", "MATH"):
            del font[table]
        for record in font["name"].names:
            if record.nameID in _FAMILY_NAMES:
                record.string = _FAMILY
        light = Path(folder) / "light.ttf"
        font.save(light)
        fontManager.addfont(light)
        try:
            yield _FAMILY
        finally:
            fontManager.ttflist = [one for one in fontManager.ttflist if one.name != _FAMILY]


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep Python from looking for garbage among the many objects of figures until they are drawn."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def picture(
    name: str, figure: "Figure", *, alt: str, caption: str, is_wide: bool = False
) -> Picture:
    """Return a figure for a page and a folder. The same figure gives the same bytes."""
    files = {}
    options: dict[str, dict[str, Any]] = {
        "svg": {"metadata": {"Date": None}},
        "png": {"pil_kwargs": {"compress_level": 3}},  # a little larger, and done in half the time
        "pdf": {"metadata": {"CreationDate": None}},
    }
    for kind, own in options.items():
        content = io.BytesIO()
        figure.savefig(content, format=kind, **own)
        files[kind] = content.getvalue()
    return Picture(name, files, alt, caption, is_wide)


def intervals_figure(rows: Sequence[Interval], *, label: str) -> "Figure":
    """Draw a dot and its interval a row, from above; values in [0, 1].

    Args:
        rows: from above.
        label: of the axis.
    """
    figure, axes = _axes((_SIZE[0], 0.8 + 0.24 * len(rows)))
    for position, row in enumerate(rows):
        if row.value is None:
            axes.text(0.01, position, "n/a", va="center", color=GREY)
            continue
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [position, position], color=BLUE)
        axes.plot(row.value, position, markersize=4.5, marker="o", color=BLUE, clip_on=False)
    _name_rows(axes, [row.name for row in rows])
    axes.set_xlim(0, 1)
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    return _done(figure)


def curves_figure(
    curves: Mapping[str, OperatingPoints],
    bands: Mapping[str, Band],
    labels: Mapping[str, str],
    *,
    kind: str,
    prevalence: float,
) -> "Figure":
    """Draw the curve of each split, and the band of sensitivity or precision where there is one.

    Args:
        curves: by split.
        bands: by split.
        labels: of the legend, by split.
        kind: roc or precision_recall.
        prevalence: the precision of deciding at random.
    """
    figure, axes = _curve_axes(kind, prevalence)
    for split, points in curves.items():
        _DRAW[kind](axes, points, bands.get(split), label=labels[split], **_STYLES[split])
    axes.legend(loc="lower right" if kind == "roc" else "upper right")
    return _done(figure)


def curves_of_runs_figure(
    curves: Sequence[OperatingPoints], *, kind: str, prevalence: float
) -> "Figure":
    """Draw a thin curve for each run, whose scores are not comparable.

    Args:
        curves: of the runs.
        kind: roc or precision_recall.
        prevalence: the precision of deciding at random.
    """
    figure, axes = _curve_axes(kind, prevalence)
    for points in curves:
        _DRAW[kind](axes, points, None, label=None, color=BLUE, linewidth=0.8, alpha=0.6)
    return _done(figure)


def runs_figure(
    rows: Mapping[str, Sequence[float | None]], pooled: Interval, *, label: str
) -> "Figure":
    """Draw a figure of each run as a dot, a row for each fold or seed, and the pooled one behind them.

    Args:
        rows: the values of the runs of each row, from above; None: undefined.
        pooled: its value as a line, its interval as a band.
        label: of the axis.
    """
    figure, axes = _axes((_SIZE[0], 1.0 + 0.24 * len(rows)))
    if pooled.low is not None and pooled.high is not None:
        axes.axvspan(pooled.low, pooled.high, color=GREY, alpha=0.18, linewidth=0)
    if pooled.value is not None:
        axes.axvline(pooled.value, color="black", linewidth=0.9, linestyle=(0, (4, 2)))
    for position, values in enumerate(rows.values()):
        known = [value for value in values if value is not None]
        axes.plot(
            known,
            [position] * len(known),
            color=BLUE,
            marker="o",
            markersize=4.5,
            linestyle="",
            alpha=0.7,
            clip_on=False,
        )
    _name_rows(axes, list(rows))
    axes.set_xlim(0, 1)
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    return _done(figure)


def curves_by_criterion_figure(
    curves: Mapping[str, tuple[OperatingPoints, Band]], *, split: str, kind: str
) -> "Figure":
    """Draw a small plot for each criterion.

    Args:
        curves: with the band, by the name of the criterion.
        split: for the style.
        kind: roc or precision_recall.
    """
    from matplotlib.figure import Figure

    n_columns = 3 if len(curves) > 4 else 2
    n_rows = -(-len(curves) // n_columns)
    figure = Figure(figsize=(7.2, 0.5 + 1.7 * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for axes, (name, (points, band)) in zip(grid.flat, curves.items(), strict=False):
        _DRAW[kind](axes, points, band, label=name, **_STYLES[split])
        axes.set_title(name)
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])
    for axes in grid.flat[len(curves) :]:
        axes.set_axis_off()
    figure.supxlabel(_CURVE_AXES[kind][0], fontsize=8)
    figure.supylabel(_CURVE_AXES[kind][1], fontsize=8)
    return _done(figure)


def reliability_figure(before: Reliability, after: Reliability | None) -> "Figure":
    """Draw how often pairs of each probability are met, before and after calibration."""
    figure, axes = _axes(_SIZE)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    series = [("raw", before, BLUE, "o", "-")]
    if after is not None:
        series.append(("calibrated", after, VERMILLION, "s", "--"))
    for name, bins, color, marker, line in series:
        ends = np.abs(bins.interval - bins.share)  # NaN: no interval
        axes.errorbar(
            bins.probability,
            bins.share,
            yerr=ends,
            color=color,
            marker=marker,
            linestyle=line,
            markersize=4,
            elinewidth=0.8,
            label=name,
        )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("predicted probability, mean of the bin")
    axes.set_ylabel("share of met pairs")
    axes.legend(loc="upper left")
    return _done(figure)


def thresholds_figure(
    thresholds: Floats, curves: Mapping[str, Floats], fitted: Sequence[float]
) -> "Figure":
    """Draw macro-F1 by the threshold of each split, with the fitted thresholds marked.

    Args:
        thresholds: `[thresholds]`.
        curves: macro-F1 at each, by split.
        fitted: the thresholds in use.
    """
    figure, axes = _axes(_SIZE)
    for split, values in curves.items():
        axes.plot(thresholds, values, label=split, **_STYLES[split])
    for position, one in enumerate(fitted):
        label = None if position else "in use"
        axes.axvline(one, color="black", linewidth=0.8, linestyle=(0, (4, 2)), label=label)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("threshold for all criteria")
    axes.set_ylabel("macro-F1")
    axes.legend(loc="best")
    return _done(figure)


def history_figure(
    steps: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    *,
    label: str,
    best_step: float | None = None,
) -> "Figure":
    """Draw what changes over training.

    Args:
        steps: of the evaluations.
        series: the values, by name; None: undefined.
        label: of the axis.
        best_step: whose checkpoint is kept; None: not marked.
    """
    figure, axes = _axes((_SIZE[0], 2.3))
    looks = [(BLUE, "o", "-"), (VERMILLION, "s", "--"), (GREEN, "^", ":"), (PURPLE, "D", "-.")]
    for (name, values), (color, marker, line) in zip(series.items(), looks, strict=False):
        shown = [np.nan if value is None else value for value in values]
        axes.plot(
            steps, shown, color=color, marker=marker, markersize=3.5, linestyle=line, label=name
        )
    if best_step is not None:
        axes.axvline(best_step, color="black", linewidth=0.8, linestyle=(0, (4, 2)), label="kept")
    axes.set_xlabel("updates")
    axes.set_ylabel(label)
    if len(series) > 1 or best_step is not None:
        axes.legend(loc="best")
    axes.locator_params(axis="x", integer=True, nbins=6)
    return _done(figure)


def counts_figure(counts: Ints) -> "Figure":
    """Draw how many posts have so many criteria met, by gold and by prediction.

    Args:
        counts: posts, `[gold, predicted]`.
    """
    from matplotlib.patches import Rectangle

    figure, axes = _axes(_SIZE)
    axes.imshow(np.sqrt(counts), cmap="Blues", origin="lower", aspect="auto")
    middle = np.sqrt(counts.max()) / 2
    for gold, predicted in np.argwhere(counts > 0):
        color = "white" if np.sqrt(counts[gold, predicted]) > middle else "black"
        axes.text(
            predicted, gold, str(counts[gold, predicted]), ha="center", va="center", color=color
        )
    for n in range(len(counts)):  # where the count is right
        axes.add_patch(
            Rectangle((n - 0.5, n - 0.5), 1, 1, fill=False, linewidth=1.2, clip_on=False)
        )
    axes.set_xticks(range(len(counts)))
    axes.set_yticks(range(len(counts)))
    axes.set_xlabel("criteria decided met in a post")
    axes.set_ylabel("criteria met in the post")
    return _done(figure)


def together_figure(names: Sequence[str], counts: Ints) -> "Figure":
    """Draw how many posts meet two criteria.

    Args:
        names: of the criteria.
        counts: posts, `[criteria, criteria]`; those that meet a criterion are on the diagonal.
    """
    side = max(_SIZE[0], 1.1 + 0.34 * len(names))
    figure, axes = _axes((side, side))
    pairs = counts - np.diag(np.diag(counts))
    axes.imshow(np.sqrt(pairs), cmap="Blues")
    middle = np.sqrt(max(pairs.max(initial=0), 1)) / 2
    for (row, column), count in np.ndenumerate(counts):
        own = row == column
        color = GREY if own else "white" if np.sqrt(count) > middle else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=7)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    return _done(figure)


def lengths_figure(lengths: Ints, limits: Mapping[str, int], *, label: str) -> "Figure":
    """Draw how many texts have how many tokens, on a logarithmic axis.

    Args:
        lengths: tokens, `[texts]`.
        limits: tokens that are read, by name; marked.
        label: of the axis.
    """
    figure, axes = _axes((_SIZE[0], 2.3))
    shown = np.maximum(lengths, 1)
    edges = np.geomspace(max(shown.min(), 1), max(shown.max(), shown.min() + 1) + 1, 31)
    axes.hist(shown, bins=list(edges), color=BLUE, edgecolor="white", linewidth=0.4)
    for (name, limit), (color, style) in zip(
        limits.items(), ((VERMILLION, "--"), (GREEN, ":")), strict=False
    ):
        axes.axvline(limit, color=color, linestyle=style, linewidth=1.2, label=name)
    axes.set_xscale("log")
    ticks = [t for t in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000) if t <= edges[-1] * 2]
    ticks = [t for t in ticks if t >= edges[0] / 2]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel("texts")
    axes.legend(loc="upper left")
    return _done(figure)


def outcomes_figure(names: Sequence[str], outcomes: Mapping[str, Sequence[int]]) -> "Figure":
    """Draw the right and wrong decisions of each criterion; met and rightly unmet ones left out.

    Args:
        names: of the criteria, from above.
        outcomes: counts, `[criteria]`, by name: found, missed, false alarms.
    """
    figure, axes = _axes((_SIZE[0], 1.0 + 0.24 * len(names)))
    looks = [(BLUE, ""), ("#ffffff", "///"), ("#E69F00", "...")]
    left = np.zeros(len(names))
    for (name, counts), (color, hatch) in zip(outcomes.items(), looks, strict=True):
        axes.barh(
            range(len(names)),
            counts,
            left=left,
            label=name,
            color=color,
            hatch=hatch,
            edgecolor="#333333",
            linewidth=0.6,
            height=0.7,
        )
        left += counts
    _name_rows(axes, names)
    axes.set_xlabel("pairs")
    axes.locator_params(axis="x", integer=True, nbins=6)
    figure.legend(loc="outside upper center", ncols=3)
    return _done(figure)


def _axes(size: tuple[float, float]) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _done(figure: "Figure") -> "Figure":
    """Lay the figure out once, and not again for each of its files."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    # None, not "none", whose placeholder has each file drawn twice.
    figure.set_layout_engine(None)
    return figure


def _name_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Name the rows of a figure, from above."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _curve_axes(kind: str, prevalence: float) -> tuple["Figure", "Axes"]:
    """Return a figure of curves with what deciding at random gives."""
    figure, axes = _axes(_SIZE)
    at_random = [0, 1] if kind == "roc" else [prevalence, prevalence]
    axes.plot([0, 1], at_random, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_xlabel(_CURVE_AXES[kind][0])
    axes.set_ylabel(_CURVE_AXES[kind][1])
    return figure, axes


def _roc(
    axes: "Axes", points: OperatingPoints, band: Band | None, *, label: str | None, **style: Any
) -> None:
    x, y = (np.append(0.0, values) for values in (points.false_positive_rate, points.recall))
    axes.plot(x, y, label=label, **style)
    if band is not None:
        _fill(axes, band.points.false_positive_rate, band.recall, color=style["color"])
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)


def _precision_recall(
    axes: "Axes", points: OperatingPoints, band: Band | None, *, label: str | None, **style: Any
) -> None:
    # Average precision is the area below these steps.
    found_more = np.diff(points.recall, prepend=0.0) > 0
    recall, precision = points.recall[found_more], points.precision[found_more]
    x, y = np.append(0.0, recall), np.append(precision[:1], precision)
    axes.plot(x, y, drawstyle="steps-pre", label=label, **style)
    if band is not None:
        _fill(axes, band.points.recall, band.precision, color=style["color"], step="pre")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)


def _fill(
    axes: "Axes", x: Floats, ends: Floats, *, color: str, step: Literal["pre"] | None = None
) -> None:
    axes.fill_between(x, ends[0], ends[1], step=step, color=color, alpha=0.18, linewidth=0)


_DRAW = {"roc": _roc, "precision_recall": _precision_recall}
