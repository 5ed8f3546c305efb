"""The report of a run: warnings, the answer, what it rests on, and how it came about."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from psy_agents_noaug.data.splits import shown_split
from psy_agents_noaug.metrics.names import HEADLINES, MERGED_BY
from psy_agents_noaug.metrics.tables import beaten_line, format_value, with_interval
from psy_agents_noaug.report.background import (
    DUPLICATES,
    data_parts,
    settings_parts,
    training_parts,
)
from psy_agents_noaug.report.curves import (
    calibration_parts,
    count_parts,
    detection_parts,
    ranking_parts,
    symptom_counts,
    threshold_parts,
)
from psy_agents_noaug.report.facts import RunFacts, SplitFacts
from psy_agents_noaug.report.figures import (
    Interval,
    intervals_figure,
    outcomes_figure,
    picture,
)
from psy_agents_noaug.report.page import Part, Picture, Pictures, Section, Table, Text
from psy_agents_noaug.report.protocol import protocol_parts
from psy_agents_noaug.report.tables import (
    calibration_table,
    criteria_tables,
    figures_table,
    outcomes_table,
    subgroup_prefixes,
    subgroups_table,
    systems_tables,
    top_level,
)
from psy_agents_noaug.run.annotators import merged_labels
from psy_agents_noaug.run.refits import describe, refit_of
from psy_agents_noaug.tracking.base import without_private_parts

_JOINT = ("supported_f1", "supported F1")
_JOINT_FIGURES = {
    "joint score, the mean of macro-F1 and IOU F1": "joint_score",
    "supported precision: met, with right evidence, of those decided met": "supported_precision",
    "supported recall": "supported_recall",
    "supported F1": "supported_f1",
    "supported F1, all pairs together": "supported_f1_micro",
    "decided met without evidence, share": "positive_without_evidence",
    "evidence of pairs decided not met, share": "evidence_without_positive",
    "comprehensiveness": "comprehensiveness",
    "comprehensiveness of random spans": "comprehensiveness_random",
    "sufficiency": "sufficiency",
    "sufficiency of random spans": "sufficiency_random",
}
_POST_FIGURES = {
    "macro-F1": "per_post/f1_macro",
    "micro-F1": "per_post/f1_micro",
    "AUROC, mean of criteria": "per_post/auroc_macro",
    "AP, mean of criteria": "per_post/average_precision_macro",
    "posts judged by every criterion": "per_post/n_judged",
    "criteria met, mean absolute error": "per_post/n_met_mae",
    "criteria met, mean error": "per_post/n_met_bias",
    "false alarms per post": "false_alarms_per_post",
    "posts with a depressive episode": "per_post/episode/n_positive",
    "episode, sensitivity": "per_post/episode/recall",
    "episode, specificity": "per_post/episode/specificity",
    "episode, PPV": "per_post/episode/precision",
}
# What makes figures better than they would be on new posts, by its key.
DOUBTS = {
    "annotated_sentences_only": "Annotated sentences alone are judged: ordinary sentences, on which a "
    "model can raise false alarms, are not.",
    "seen_posts_unchecked": "Whether training has seen these posts was not checked. If it has, the "
    "figures are too good.",
}


def run_sections(facts: RunFacts) -> list[Section]:
    """Return the sections of a run's report; one without content is left out."""
    first, refit = facts.splits[0], refit_of(facts.manifest)
    made: list[tuple[str, Iterator[Part]]] = [
        ("Warnings", _warnings(facts)),
        ("The answer", _answer(facts)),
        ("By criterion", by_criterion_parts(facts)),
        ("Protocol", protocol_parts(facts.splits, facts.own_config, facts.criteria)),
        ("Right and wrong decisions", _outcomes(first, facts.criteria)),
        ("Precision, recall and ROC", ranking_parts(facts.splits, facts.criteria)),
        ("Detection of evidence", detection_parts(first, facts.criteria)),
        ("Labels with evidence", _joint(first)),
        ("Calibration", _calibration(facts)),
        (
            "Thresholds",
            threshold_parts(
                facts.splits,
                facts.criteria,
                fitted_on="out-of-fold predictions" if refit else "val",
            ),
        ),
        ("Whole posts", _whole_posts(first, facts.criteria)),
        ("Length and subgroups", _subgroups(first)),
        ("Criteria held out of training", _held_out(first)),
        ("Training", training_parts(facts)),
        ("Data", data_parts(facts)),
        ("All figures of each split", all_figures(facts.splits)),
        ("Settings, versions and evaluations", settings_parts(facts)),
    ]
    sections = [Section(title, list(parts)) for title, parts in made]
    return [section for section in sections if section.parts]


def headlines(facts: RunFacts) -> list[tuple[str, str]]:
    """Return the keys and names of the figures that the report is about; the first leads.

    A task of another package has the figure that its training monitors.
    """
    figures = facts.splits[0].figures
    shown = {key: name for key, (name, _) in HEADLINES.items()}
    monitor = str((facts.config.get("training") or {}).get("monitor", "")).partition("/")[2]
    found = [(key, name) for key, name in [_JOINT, *shown.items()] if key in figures]
    return found or [(key, key) for key in (monitor,) if key in figures]


def _warnings(facts: RunFacts) -> Iterator[Part]:
    first = facts.splits[0]
    found = [f"Left out, because it could not be read: {fault}" for fault in facts.faults]
    status = facts.manifest.get("status")
    if status not in (None, "finished"):
        found.append(f"The training has not finished: its status is {status}.")
    if first.name == "train":
        found.append(
            "The model has learned these pairs: the figures say nothing about other posts."
        )
    found += [text for key, text in DOUBTS.items() if first.figures.get(key)]
    for key, what in (
        ("n_near_duplicates_of_train", "posts are near duplicates of training posts"),
        ("n_posts_by_authors_of_train", "posts are by authors of training posts"),
    ):
        if first.figures.get(key):
            found.append(f"{first.figures[key]} {what}: the figures are too good.")
    if facts.n_test > 1:
        found.append(
            f"Models of this run have been evaluated on test {facts.n_test} times. A choice made by "
            "test makes its figures too good."
        )
    found += map(str, facts.data.get("warnings", []))
    for kind, what in DUPLICATES.items():
        numbers = facts.data.get("duplicates_across_splits", {}).get(f"n_posts_{kind}", {})
        if n := sum(numbers.values()):
            found.append(f"{n} posts have a text that is {what} in another split; see Data.")
    skipped = facts.manifest.get("skipped_updates")
    if skipped:
        found.append(f"{skipped} updates were skipped, because gradients overflowed in fp16.")
    if found:
        yield Text([without_private_parts(line) for line in found], "warning")


def answer_lines(facts: RunFacts, *, begins: str) -> list[str]:
    """Return a sentence for each headline figure, with its interval and the baselines.

    Args:
        facts: of what is judged.
        begins: the first sentence, up to the name of its figure.
    """
    first, lines = facts.splits[0], []
    for position, (key, name) in enumerate(headlines(facts)):
        counted = f" ({_sizes(first.figures)})" if not position else ""
        shown = (
            with_interval(first.figures, key)
            if f"{key}_ci_low" in first.figures
            else format_value(first.figures[key])
        )
        beaten = ""
        if key in HEADLINES:
            judged = {
                own: text
                for own, text in HEADLINES[key][1].items()
                if f"baseline_{own}/{key}_gain" in first.figures
            }
            beaten = f" {_on_one_line(first.figures, judged, key, name)}" if judged else ""
        lines.append(f"{'The' if position else begins} {name} is {shown}{counted}.{beaten}")
    return lines


def _answer(facts: RunFacts) -> Iterator[Part]:
    first, *others = facts.splits
    named = headlines(facts)
    if not named:
        return
    yield Text(answer_lines(facts, begins=f"On {shown_split(first.name)} the"), "answer")
    notes = ["In brackets are 95 % intervals over authors, or posts where authors are not known."]
    for other in others:
        shown = "; ".join(
            f"{name} {with_interval(other.figures, key)}"
            for key, name in named
            if f"{key}_ci_low" in other.figures
        )
        why = ", which chose checkpoint and thresholds" if other.name == "val" else ""
        if shown:
            notes.append(f"On {shown_split(other.name)}{why}: {shown}.")
    if MERGED_BY in first.figures:
        notes.append(merged_labels(str(first.figures[MERGED_BY])))
    if refit := refit_of(facts.manifest):
        notes.append(describe(refit))
    yield Text(notes, "note")
    yield from systems_tables(first.figures, split=first.name)


def _on_one_line(
    figures: Mapping[str, Any], baselines: Mapping[str, str], key: str, name: str
) -> str:
    return beaten_line(figures, baselines, key=key, name=name).replace("\n", " ")


def _sizes(figures: Mapping[str, Any]) -> str:
    counts = [
        f"{figures[key]} {what}"
        for keys, what in (
            (("n_posts", "evidence_n_posts"), "posts"),
            (("n_pairs", "evidence_n_pairs"), "pairs"),
        )
        for key in keys
        if key in figures
    ]
    return ", ".join(dict.fromkeys(counts))


def by_criterion_parts(facts: RunFacts) -> Iterator[Part]:
    """Yield the figures of each criterion, as tables and as intervals."""
    first, *others = facts.splits
    criteria = facts.criteria
    drawn = [
        ("f1", "F1", "labels"),
        ("evidence_iou_f1", "IOU F1", "evidence"),
    ]
    pictures = []
    for key, name, kind in drawn:
        prefixes = {one: f"per_criterion/{one}/{key}" for one in criteria}
        if not criteria or not all(one in first.figures for one in prefixes.values()):
            continue
        pictures.append(
            _intervals_picture(
                first,
                prefixes,
                name=kind,
                label=name,
                alt=f"{name} of each criterion with its interval",
                caption=f"{name} by criterion on {shown_split(first.name)}. Numbers: the table "
                f"{'Labels' if kind == 'labels' else 'Evidence'} by criterion.",
            )
        )
    yield from criteria_tables(first.figures, criteria, split=first.name)
    if pictures:
        yield Pictures(pictures)
    for other in others:
        for table in criteria_tables(other.figures, criteria, split=other.name):
            yield folded(table)


def _intervals_picture(
    split: SplitFacts, keys: Mapping[str, str], *, name: str, label: str, alt: str, caption: str
) -> Picture:
    """Return a figure of intervals, with a row for each of `keys`, by their shown names."""
    rows = [interval_of(split.figures, key, name=shown) for shown, key in keys.items()]
    values = "; ".join(f"{row.name} {format_value(row.value)}" for row in rows)
    return picture(
        f"{name}_{split.name}",
        intervals_figure(rows, label=f"{label}, {split.name}"),
        alt=f"{alt}: {values}.",
        caption=caption,
    )


def interval_of(figures: Mapping[str, Any], key: str, *, name: str) -> Interval:
    """Return a figure with its interval, where it has one."""
    low, high = (figures.get(f"{key}_ci_{end}") for end in ("low", "high"))
    return Interval(name, figures[key], low, high)


def folded(table: Table) -> Table:
    """Return a table that is shown on demand."""
    return Table(**{**vars(table), "is_folded": True})


def _outcomes(split: SplitFacts, criteria: Mapping[str, str]) -> Iterator[Part]:
    keys = {
        "found": "true_positives",
        "missed": "false_negatives",
        "false alarms": "false_positives",
    }
    if not criteria or f"per_criterion/{next(iter(criteria))}/true_positives" not in split.figures:
        return
    counts = {
        name: [split.figures[f"per_criterion/{one}/{key}"] for one in criteria]
        for name, key in keys.items()
    }
    yield outcomes_table(split.figures, criteria, split=split.name)
    yield outcomes_pictures(counts, criteria, split=split.name)


def outcomes_pictures(
    counts: Mapping[str, Sequence[int]], criteria: Mapping[str, str], *, split: str
) -> Pictures:
    """Return the decisions of each criterion as bars.

    Args:
        counts: found, missed and false alarms, `[criteria]` each.
        criteria: the names, by id.
        split: that is judged.
    """
    alt = "; ".join(f"{name} {sum(own)}" for name, own in counts.items())
    return Pictures(
        [
            picture(
                f"confusion_{split}",
                outcomes_figure(list(criteria), counts),
                alt=f"Decisions of each criterion as bars; of all criteria: {alt}.",
                caption="Met pairs found and missed, and false alarms. Numbers: the table above.",
            )
        ]
    )


def _joint(split: SplitFacts) -> Iterator[Part]:
    yield from named_figures(split, _JOINT_FIGURES, name="joint", caption="Labels with evidence")


def named_figures(
    split: SplitFacts, names: Mapping[str, str], *, name: str, caption: str
) -> Iterator[Part]:
    """Yield a table of those of the figures that there are, each by its shown name."""
    keys = {shown: key for shown, key in names.items() if key in split.figures}
    if keys:
        yield figures_table(
            split.figures, keys, name=f"{name}_{split.name}", caption=f"{caption}, {split.name}"
        )


def _calibration(facts: RunFacts) -> Iterator[Part]:
    tables = {
        split: table
        for split in facts.splits[:2]
        if (table := calibration_table(split.figures, split=split.name)) is not None
    }
    yield from tables.values()
    yield from calibration_parts(list(tables), list(facts.criteria))


def _whole_posts(split: SplitFacts, criteria: Mapping[str, str]) -> Iterator[Part]:
    yield from post_figures(split)
    yield from count_parts(symptom_counts(split, list(criteria)), split=split.name)


def post_figures(split: SplitFacts) -> Iterator[Part]:
    """Yield a table of the figures of whole posts."""
    yield from named_figures(split, _POST_FIGURES, name="posts", caption="Whole posts")


def _subgroups(split: SplitFacts) -> Iterator[Part]:
    prefixes = subgroup_prefixes(split.figures)
    if not prefixes:
        return
    yield subgroups_table(split.figures, split=split.name)
    pictures = []
    for name in dict.fromkeys(name for name, _ in prefixes):
        keys = {
            value: f"{prefix}f1_micro" for (own, value), prefix in prefixes.items() if own == name
        }
        pictures.append(
            _intervals_picture(
                split,
                keys,
                name=f"subgroup_{_file_name(name)}",
                label="micro-F1",
                alt=f"Micro-F1 by {name}",
                caption=f"Micro-F1 by {name}. Numbers: the table above.",
            )
        )
    yield Pictures(pictures)


def _held_out(split: SplitFacts) -> Iterator[Part]:
    keys = [
        key
        for key, value in split.figures.items()
        if key.startswith("held_out/")
        and not key.endswith(("_ci_low", "_ci_high", "_undefined"))
        and not isinstance(value, str)
    ]
    if keys:
        yield figures_table(
            split.figures,
            dict(zip(keys, keys, strict=True)),
            name=f"held_out_{split.name}",
            caption="Criteria held out of training",
        )


def all_figures(splits: Sequence[SplitFacts]) -> Iterator[Part]:
    """Yield a table of all figures of each split."""
    for split in splits:
        keys = top_level(split.figures)
        yield folded(
            figures_table(
                split.figures,
                dict(zip(keys, keys, strict=True)),
                name=f"all_{split.name}",
                caption=f"Figures of {split.name}, by their keys in metrics.json",
            )
        )


def _file_name(name: str) -> str:
    return "".join(sign if sign.isalnum() and sign.isascii() else "_" for sign in name)
