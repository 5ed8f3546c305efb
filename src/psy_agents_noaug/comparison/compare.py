"""What is compared: headline figures, each criterion, and where two systems disagree.

Statistics are those of `metrics.comparison`. Holm's adjustment is over pairs of systems for a headline
figure, and over criteria and pairs of systems for those of a criterion, which are one family a figure.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from psy_agents_noaug.comparison.systems import System, Systems
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.metrics.comparison import Difference, difference_of, holm
from psy_agents_noaug.metrics.lines import Line, line_groups
from psy_agents_noaug.metrics.names import MERGED_BY, those_against
from psy_agents_noaug.metrics.tables import with_interval
from psy_agents_noaug.tasks.registry import settings_model

LEVEL = 0.05
# The figure of a criterion by which systems win, by what its pairs have; both are compared in `joint`.
FIGURES = {"f1": "label", "evidence_iou_f1": "evidence"}
Result = Literal["win", "tie", "loss", "too few"]


@dataclass(frozen=True)
class ComparedFigure:
    """A figure of two systems.

    Args:
        figure: its name in metrics.json, without the criterion.
        criterion: None: of the whole split.
        found: the difference; None: the figure is undefined on this split.
        p_adjusted: Holm's; None where there is no test.
        result: of the first system: win or loss if `p_adjusted` is at most 0.05; None: undefined.
    """

    figure: str
    criterion: str | None
    found: Difference | None
    p_adjusted: float | None
    result: Result | None


@dataclass(frozen=True)
class Agreement:
    """Pairs by who is right. A system is right on a pair if more than half of its trainings are.

    Args:
        part: label or evidence. Evidence is right if all predicted spans are right and all gold ones
            are found.
        name: of the criterion, or the id of the post.
        both_right: pairs that both get right.
        only_first: pairs that the first system alone gets right.
        only_second: pairs that the second system alone gets right.
        both_wrong: the other pairs.
    """

    part: str
    name: str
    both_right: int
    only_first: int
    only_second: int
    both_wrong: int


@dataclass(frozen=True)
class ComparedPair:
    """Two systems.

    Args:
        first: name of the one.
        second: name of the other.
        headline: figures of the whole split.
        criteria: figures of each criterion.
        agreement: counts of each criterion.
        posts: counts of each post on which they disagree, the most disagreements first.
    """

    first: str
    second: str
    headline: list[ComparedFigure]
    criteria: list[ComparedFigure]
    agreement: list[Agreement]
    posts: list[Agreement]


@dataclass(frozen=True)
class SystemComparison:
    """Systems, two and two.

    Args:
        task: of all systems.
        split: that was judged.
        n_posts: posts of the split.
        n_groups: authors, or posts where they are not known.
        n_trainings: of each system, by its name.
        runs: directories of each system, by its name.
        pairs: of systems.
        notes: what a reader must know.
    """

    task: str
    split: str
    n_posts: int
    n_groups: int
    n_trainings: dict[str, int]
    runs: dict[str, list[str]]
    pairs: list[ComparedPair]
    notes: list[str]


def compare_systems(found: Systems, *, split: str) -> SystemComparison:
    """Compare each two systems.

    Args:
        found: systems that have judged the same pairs.
        split: that they have judged.

    Raises:
        ConfigError: their lines give no figure that can be compared.
    """
    lines = found.systems[0].trainings[0].lines
    keys = set.intersection(
        *(set(training.samples) for system in found.systems for training in system.trainings)
    )
    headline = settings_model(found.task).headline_metrics
    names = [key for key in (*headline, *(f"per_post/{key}" for key in headline)) if key in keys]
    if not names:
        raise ConfigError(
            f"The predictions of the task {found.task} give none of its headline figures "
            f"({', '.join(headline)}), so that no system can be compared."
        )
    notes = [*found.notes, *_notes(found, split)]
    if absent := [name for name in headline if name not in keys]:
        notes.append(
            f"Left out, as some predictions are of an earlier version: {', '.join(absent)}. Evaluate "
            "the runs again to have them."
        )
    two_and_two = list(combinations(found.systems, 2))
    of_headline = [_adjusted(two_and_two, [(name, None)]) for name in names]
    criteria = sorted({line["criterion_id"] for line in lines})
    of_criteria = [
        _adjusted(two_and_two, [(figure, criterion) for criterion in criteria])
        for figure in FIGURES
        if f"per_criterion/{criteria[0]}/{figure}" in keys
    ]
    return SystemComparison(
        task=found.task,
        split=split,
        n_posts=len({line["post_id"] for line in lines}),
        n_groups=len(set(line_groups([lines]))),
        n_trainings={system.name: len(system.trainings) for system in found.systems},
        runs={s.name: [str(t.path) for t in s.trainings] for s in found.systems},
        pairs=[
            ComparedPair(
                one.name,
                other.name,
                headline=[figure for figures in of_headline for figure in figures[number]],
                criteria=[figure for figures in of_criteria for figure in figures[number]],
                agreement=_agreement(one, other, by="criterion_id"),
                posts=_agreement(one, other, by="post_id"),
            )
            for number, (one, other) in enumerate(two_and_two)
        ],
        notes=notes,
    )


def _adjusted(
    pairs: Sequence[tuple[System, System]], figures: Sequence[tuple[str, str | None]]
) -> list[list[ComparedFigure]]:
    """Compare figures, `[pairs of systems][figures]`, whose p-values are adjusted together."""
    found = [
        difference_of(_values(one, *figure), _values(other, *figure))
        for one, other in pairs
        for figure in figures
    ]
    # A figure that is undefined is so by its labels, and no test.
    tested = [at for at, own in enumerate(found) if own is not None]
    p_values = holm([own.p_value for own in found if own is not None])
    adjusted = dict(zip(tested, p_values, strict=True))
    compared = [
        ComparedFigure(
            *figures[at % len(figures)],
            found=own,
            p_adjusted=adjusted.get(at),
            result=None if own is None else _result(own, adjusted[at]),
        )
        for at, own in enumerate(found)
    ]
    size = len(figures)
    return [compared[begin : begin + size] for begin in range(0, len(compared), size)]


def _values(system: System, figure: str, criterion: str | None) -> np.ndarray:
    key = figure if criterion is None else f"per_criterion/{criterion}/{figure}"
    return np.stack([training.samples[key] for training in system.trainings])


def _result(found: Difference, p_adjusted: float | None) -> Result:
    if p_adjusted is None:
        return "too few" if found.difference else "tie"
    if p_adjusted > LEVEL:
        return "tie"
    return "win" if found.difference > 0 else "loss"


def _agreement(
    one: System, other: System, *, by: Literal["criterion_id", "post_id"]
) -> list[Agreement]:
    """Count who is right, by criterion, or by post with a disagreement."""
    lines = one.trainings[0].lines
    rows = []
    for part in ("label", "evidence"):
        first, second = (_right(system, part) for system in (one, other))
        if not first:
            continue
        cases: dict[str, Counter[tuple[bool, bool]]] = {}
        for line, right, other_right in zip(lines, first, second, strict=True):
            if right is not None and other_right is not None:
                cases.setdefault(line[by], Counter())[right, other_right] += 1
        rows += [Agreement(part, name, *(n[case] for case in _CASES)) for name, n in cases.items()]
    if by == "criterion_id":
        return sorted(rows, key=lambda row: (row.part != "label", row.name))
    differing = [row for row in rows if row.only_first + row.only_second]
    return sorted(
        differing, key=lambda row: (-row.only_first - row.only_second, row.name, row.part)
    )


_CASES = ((True, True), (True, False), (False, True), (False, False))


def _right(system: System, part: str) -> list[bool | None]:
    """Return whether a system is right on each pair, None: unknown; nothing without this part."""
    trainings = [[_is_right(line, part) for line in t.lines] for t in system.trainings]
    if all(right is None for right in trainings[0]):
        return []
    return [
        None if None in right else 2 * sum(map(bool, right)) > len(right)
        for right in zip(*trainings, strict=True)
    ]


def _is_right(line: Line, part: str) -> bool | None:
    if part == "label":
        return bool(line["label"] == line["decision"]) if "decision" in line else None
    if line.get("gold_evidence") is None:
        return None
    spans = [span["right"] for span in line["evidence"]]
    return all(spans + [span["found"] for span in line["gold_evidence"]])


def _notes(found: Systems, split: str) -> list[str]:
    once = [s.name for s in found.systems if len(s.trainings) == 1 and not s.is_baseline]
    notes = []
    if once:
        notes.append(
            f"Trained once: {', '.join(once)}. Intervals and p-values are about these weights on other "
            "posts, not about this way of training: another seed may reverse a difference."
        )
    if split == "val":
        notes.append(
            "Checkpoints, thresholds and calibration were chosen on val: its figures are too good, and "
            "not equally so for all systems."
        )
    return notes + _ceiling(found, split)


def _ceiling(found: Systems, split: str) -> list[str]:
    """Return how well annotators find each other's labels, where a run says so."""
    prefix = f"{split}/annotators/"
    of_runs = [training.figures for system in found.systems for training in system.trainings]
    figures = next((own for own in of_runs if any(key.startswith(prefix) for key in own)), {})
    shown = [
        f"{figure} {with_interval(figures, prefix + figure)}"
        for figure in settings_model(found.task).headline_metrics
        if prefix + figure in figures
    ]
    if not shown:
        return []
    others = those_against(figures.get(f"{split}/{MERGED_BY}"))
    return [f"Annotators, each against the labels of {others}: {', '.join(shown)}."]
