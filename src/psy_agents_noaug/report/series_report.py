"""The report of a cross-validation, or of several seeds: what is pooled, and each fold and seed."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from psy_agents_noaug.data.splits import SPLIT_NAMES
from psy_agents_noaug.metrics.comparison import MIN_TRAININGS
from psy_agents_noaug.metrics.lines import label_pairs, post_thresholds_of
from psy_agents_noaug.metrics.pooled_posts import by_criteria, judged_posts
from psy_agents_noaug.metrics.tables import format_value
from psy_agents_noaug.report.background import DUPLICATES, data_parts, settings_parts
from psy_agents_noaug.report.curves import (
    calibration_parts,
    count_parts,
    counts_of,
    ranking_parts_of_runs,
)
from psy_agents_noaug.report.figures import picture, runs_figure
from psy_agents_noaug.report.page import Cell, Part, Pictures, Section, Table, Text
from psy_agents_noaug.report.run_report import (
    DOUBTS,
    all_figures,
    answer_lines,
    by_criterion_parts,
    headlines,
    interval_of,
    outcomes_pictures,
    post_figures,
)
from psy_agents_noaug.report.series_facts import SeriesFacts, SeriesRun
from psy_agents_noaug.report.tables import cell, systems_tables
from psy_agents_noaug.tracking.base import without_private_parts

_POOLED = (
    "F1, sensitivity, specificity, PPV and NPV are of the decisions on all folds, each by the "
    "thresholds of its own fold. AUROC and AP are means over folds, whose scores are not comparable "
    "(Forman and Scholz 2010)."
)
_COVERED = (
    "The intervals take the models as they are: they are for how these models judge other posts. The "
    "models share training posts: in simulations the intervals hold their figures on other posts in 93 "
    "to 100 %, those of models of other training posts less often, in 82 to 93 % with one seed. AP of "
    "fewer than 20 met pairs in a fold comes out too high and has no interval."
)
_ON_VAL = (
    "Val chose the checkpoint, the thresholds and the calibration of each training: these figures are "
    "too good. Test was not looked at."
)


def series_sections(facts: SeriesFacts) -> list[Section]:
    """Return the sections of the report of a series; one without content is left out."""
    pooled = facts.pooled
    made: list[tuple[str, Iterator[Part]]] = [
        ("Warnings", _warnings(facts)),
        ("The answer", _answer(facts)),
        ("Folds and seeds", _runs(facts)),
        ("By criterion", by_criterion_parts(pooled)),
        ("Right and wrong decisions", _outcomes(facts)),
        ("Precision, recall and ROC of each run", _curves(facts)),
        ("Calibration", _calibration(facts)),
        ("Whole posts", _whole_posts(facts)),
        ("Data", _data(facts)),
        ("All pooled figures", all_figures(pooled.splits)),
        ("Settings and versions", settings_parts(pooled, caption="This series")),
    ]
    sections = [Section(title, list(parts)) for title, parts in made]
    return [section for section in sections if section.parts]


def counted(facts: SeriesFacts) -> str:
    """Return how many folds and seeds there are, in words."""
    n_folds, n_seeds = len(_folds(facts)), len(facts.series.seeds)
    seeds = "1 seed" if n_seeds == 1 else f"{n_seeds} seeds"
    return f"{n_folds} folds and {seeds}" if facts.series.has_folds else seeds


def _folds(facts: SeriesFacts) -> list[int | None]:
    return list(dict.fromkeys(run.fold for run in facts.series.runs))


def _warnings(facts: SeriesFacts) -> Iterator[Part]:
    found = [
        f"Left out, because it could not be read: {fault}"
        for fault in dict.fromkeys(facts.pooled.faults)
    ]
    if not facts.series.has_folds:
        found.append(_ON_VAL)
    found += [
        text for key, text in DOUBTS.items() if any(run.figures.get(key) for run in facts.runs)
    ]
    found += [
        f"{key.removeprefix('mean_of_runs/').removesuffix('_undefined')} is {reason}."
        for key, reason in facts.split.figures.items()
        if key.startswith("mean_of_runs/") and key.endswith("_undefined")
    ]
    own = {run.recorded.name: run for run in facts.runs}
    for name, data in facts.data.items():
        begins = f"Fold {own[name].recorded.fold}: " if facts.series.has_folds else ""
        found += [f"{begins}{line}" for line in map(str, data.get("warnings", []))]
        for kind, what in DUPLICATES.items():
            numbers = data.get("duplicates_across_splits", {}).get(f"n_posts_{kind}", {})
            if n := sum(numbers.values()):
                found.append(f"{begins}{n} posts have a text that is {what} in another split.")
    for run in facts.runs:
        if skipped := run.manifest.get("skipped_updates"):
            found.append(f"{run.recorded.name}: {skipped} updates were skipped (fp16 overflow).")
    if found:
        yield Text([without_private_parts(line) for line in found], "warning")


def _answer(facts: SeriesFacts) -> Iterator[Part]:
    has_folds, n_seeds = facts.series.has_folds, len(facts.series.seeds)
    where = "Over" if has_folds else "On val, over"
    lines = answer_lines(facts.pooled, begins=f"{where} {counted(facts)} the")
    if not lines:
        return
    yield Text(lines, "answer")
    notes = [_POOLED] if has_folds else []
    about = "authors, or posts where authors are not known"
    if n_seeds >= MIN_TRAININGS:
        notes.append(f"In brackets are 95 % intervals over {about}, and over seeds.")
    else:
        notes.append(
            f"In brackets are 95 % intervals over {about}, alone: the spread over seeds needs "
            f"{MIN_TRAININGS} seeds or more."
        )
    if has_folds:
        notes.append(_COVERED)
    yield Text(notes, "note")
    yield from systems_tables(facts.split.figures, split=facts.split.name)


def _runs(facts: SeriesFacts) -> Iterator[Part]:
    named = headlines(facts.pooled)
    if named:
        yield _runs_pictures(facts, *named[0])
    yield _runs_table(facts)
    if (spread := _spread_table(facts)).rows:
        yield spread
    if len(facts.series.seeds) > 1 and (seeds := _seeds_table(facts)).rows:
        yield seeds


def _runs_pictures(facts: SeriesFacts, key: str, name: str) -> Pictures:
    series, split = facts.series, facts.split
    rows: dict[str, list[float | None]] = {}
    for run in facts.runs:
        own = run.recorded
        row = f"fold {own.fold}" if series.has_folds else f"seed {own.seed}"
        rows.setdefault(row, []).append(run.figures.get(key))
    pooled = interval_of(split.figures, key, name="pooled")
    values = "; ".join(f"{row} {', '.join(map(format_value, own))}" for row, own in rows.items())
    dots = "a dot for each seed" if series.has_folds else "a dot each"
    return Pictures(
        [
            picture(
                f"runs_{split.name}",
                runs_figure(rows, pooled, label=f"{name}, {series.split} of each run"),
                alt=f"{name} of each run: {values}; pooled {format_value(pooled.value)}.",
                caption=f"{name} of each run by itself, {dots}. Dashed: the pooled figure; grey: its "
                "95 % interval. Numbers: the table of runs.",
            )
        ]
    )


def _runs_table(facts: SeriesFacts) -> Table:
    keys = _run_keys(facts)
    rows: list[list[str | Cell]] = []
    for run in facts.runs:
        best = run.manifest.get("best_value")
        rows.append(
            [
                run.recorded.name,
                *([str(run.recorded.fold)] if facts.series.has_folds else []),
                str(run.recorded.seed),
                *(_run_cell(run, key) for key in keys),
                format_value(best if best is None else float(best)),
                str(run.manifest.get("best_step", "")),
                str(run.manifest.get("weights_sha256") or "")[:12],
            ]
        )
    fold = ["fold"] if facts.series.has_folds else []
    monitor = str((facts.pooled.config.get("training") or {}).get("monitor", "monitor"))
    head = ["run", *fold, "seed", *keys, f"best {monitor}", "at update", "weights"]
    return Table("runs", f"Runs, each on its {facts.series.split}", head, rows)


def _run_keys(facts: SeriesFacts) -> list[str]:
    """Return the figures that are shown of each run: those that have a mean over runs."""
    wanted = [key for key, _ in headlines(facts.pooled)]
    wanted += ["auroc_micro", "average_precision_micro"]
    own = _mean_keys(facts)
    return [
        key
        for key in dict.fromkeys([*own, *wanted])
        if any(key in run.figures for run in facts.runs)
    ]


def _run_cell(run: SeriesRun, key: str) -> Cell | str:
    return cell(run.figures, key, is_drawn=False) if key in run.figures else "n/a"


def _mean_keys(facts: SeriesFacts) -> list[str]:
    start = "mean_of_runs/"
    keys = [key.removeprefix(start) for key in facts.split.figures if key.startswith(start)]
    return [key for key in keys if not key.endswith("_undefined")]


def _spread_table(facts: SeriesFacts) -> Table:
    columns = {"mean of runs": "mean_of_runs"}
    if len(_folds(facts)) > 1:
        columns["sd over folds"] = "sd_over_folds"
    if len(facts.series.seeds) > 1:
        columns["sd over seeds"] = "sd_over_seeds"
    figures = facts.split.figures
    rows = [
        [key, *(format_value(figures.get(f"{unit}/{key}")) for unit in columns.values())]
        for key in _mean_keys(facts)
    ]
    return Table(
        "spread", "Figures of runs by themselves, and their spread", ["figure", *columns], rows
    )


def _seeds_table(facts: SeriesFacts) -> Table:
    figures, seeds = facts.split.figures, facts.series.seeds
    keys = [
        key.removeprefix(f"per_seed/{seeds[0]}/")
        for key in figures
        if key.startswith(f"per_seed/{seeds[0]}/")
    ]
    rows = (
        [
            [str(seed), *(format_value(figures.get(f"per_seed/{seed}/{key}")) for key in keys)]
            for seed in seeds
        ]
        if keys
        else []
    )
    pooled = "pooled over folds" if facts.series.has_folds else "on val"
    return Table("seeds", f"Each seed, {pooled}", ["seed", *keys], rows)


def _outcomes(facts: SeriesFacts) -> Iterator[Part]:
    labels, criteria, name = facts.split.labels, facts.pooled.criteria, facts.split.name
    if labels is None:
        return
    met, decided = labels.pairs.labels == 1, labels.decisions == 1
    cases = {
        "found": met & decided,
        "missed": met & ~decided,
        "false alarms": ~met & decided,
        "rightly unmet": ~met & ~decided,
    }
    counts = {
        case: [int(own[labels.pairs.criterion_ids == one].sum()) for one in criteria]
        for case, own in cases.items()
    }
    rows = [
        [one, shown, *(str(own[row]) for own in counts.values())]
        for row, (one, shown) in enumerate(criteria.items())
    ]
    head = ["criterion", "name", *cases]
    caption = f"Confusion by criterion, {name}"
    yield Table(f"confusion_{name}", caption, head, rows, left=2, notes=_once_per_seed(facts))
    drawn = {case: own for case, own in counts.items() if case != "rightly unmet"}
    yield outcomes_pictures(drawn, criteria, split=name)


def _once_per_seed(facts: SeriesFacts) -> list[str]:
    n = len(facts.series.seeds)
    return [f"Each pair is counted {n} times, once for each seed."] if n > 1 else []


def _curves(facts: SeriesFacts) -> Iterator[Part]:
    if facts.split.labels is None:
        return
    pairs = {run.name: label_pairs(facts.lines_of(run)) for run in facts.series.runs}
    yield from ranking_parts_of_runs(pairs, split=facts.split.name)


def _calibration(facts: SeriesFacts) -> Iterator[Part]:
    # On val the calibration is judged by what it was fitted on.
    if facts.series.has_folds and facts.split.labels is not None:
        yield from calibration_parts([facts.split], list(facts.pooled.criteria))
        if notes := _once_per_seed(facts):
            yield Text(notes, "note")


def _whole_posts(facts: SeriesFacts) -> Iterator[Part]:
    yield from post_figures(facts.split)
    if facts.split.labels is None:
        return
    posts = [
        by_criteria(judged_posts(lines, _post_thresholds(facts, seed) or None))
        for seed in facts.series.seeds
        if (lines := [line for line in facts.lines if line["seed"] == seed])
    ]
    note = "".join(f" {line}" for line in _once_per_seed(facts)).replace("pair", "post")
    yield from count_parts(counts_of(posts), split=facts.split.name, note=note)


def _post_thresholds(facts: SeriesFacts, seed: int) -> dict[int, dict[str, float]]:
    found = {
        run.recorded.fold or 0: post_thresholds_of(run.figures, prefix="")
        for run in facts.runs
        if run.recorded.seed == seed
    }
    return found if all(found.values()) else {}


def _data(facts: SeriesFacts) -> Iterator[Part]:
    if facts.series.has_folds and facts.lines:
        yield _folds_table(facts)
    first = next(iter(facts.data.values()), {})
    of_corpus = {
        key: value
        for key, value in first.items()
        if not facts.series.has_folds or key in ("alignment", "labels", "corrections")
    }
    yield from data_parts(replace(facts.pooled, data=of_corpus))


def _folds_table(facts: SeriesFacts) -> Table:
    """Return what each fold, and the val of its trainings, holds."""
    first = [line for line in facts.lines if line["seed"] == facts.series.seeds[0]]
    criteria = list(facts.pooled.criteria)
    sizes = {
        run.recorded.fold: facts.data.get(run.recorded.name, {}).get("splits", {})
        for run in facts.runs
        if run.recorded.seed == facts.series.seeds[0]
    }
    rows = []
    for fold, splits in sizes.items():
        own = [line for line in first if line["fold"] == fold]
        met = Counter(line["criterion_id"] for line in own if line.get("label"))
        trained = [str(splits.get(name, {}).get("posts", "")) for name in SPLIT_NAMES[:2]]
        posts = str(len({line["post_id"] for line in own}))
        rows.append([str(fold), posts, str(len(own)), *trained, *(str(met[c]) for c in criteria)])
    head = ["fold", "posts", "pairs", "trained on", "val", *(f"met, {c}" for c in criteria)]
    return Table("folds", f"Folds ({facts.pooled.origin})", head, rows)
