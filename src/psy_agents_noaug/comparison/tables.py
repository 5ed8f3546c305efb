"""A comparison as tables: rows of text, from which the console, LaTeX and the page are made."""

from collections import Counter
from collections.abc import Sequence

from psy_agents_noaug.comparison.compare import (
    FIGURES,
    Agreement,
    ComparedFigure,
    ComparedPair,
    SystemComparison,
)
from psy_agents_noaug.metrics.tables import format_value, render_table
from psy_agents_noaug.report.page import Table

MAX_POSTS = 5  # on the console; the files have all


def tables_of(comparison: SystemComparison, number: int) -> list[Table]:
    """Return the tables of two systems, the posts on which they disagree last.

    Args:
        comparison: of all systems.
        number: of the two, in `comparison.pairs`.
    """
    pair = comparison.pairs[number]
    versus = f"{pair.first} against {pair.second}"
    several = len(comparison.pairs) > 1
    of_pairs = f" of {len(comparison.pairs)} pairs of systems" if several else ""
    heads = [pair.first, pair.second, "difference [95 % interval]", "p"]
    tables = [
        Table(
            f"headline_{number + 1}",
            f"{versus}: the whole split",
            ["figure", *heads, *(["p (Holm)"] if several else []), "result"],
            [[row.figure, *_cells(row, adjusted=several)] for row in pair.headline],
            notes=[f"Holm: one test{of_pairs}."] if several else [],
        )
    ]
    for figure, part in FIGURES.items():
        if rows := [row for row in pair.criteria if row.figure == figure]:
            n_tests = sum(row.found is not None for row in rows)
            tables.append(
                Table(
                    f"{figure}_{number + 1}",
                    f"{versus}: {figure} of each criterion",
                    ["criterion", *heads, "p (Holm)", "result"],
                    [[str(row.criterion), *_cells(row, adjusted=True)] for row in rows],
                    notes=[f"{score(rows)}. Holm: {n_tests} criteria{of_pairs}."],
                )
            )
        if counted := [row for row in pair.agreement if row.part == part]:
            tables.append(
                Table(
                    f"{part}_{number + 1}",
                    f"{versus}: pairs whose {part} is right",
                    ["criterion", *_cases(pair)],
                    [*([row.name, *map(str, _counts(row))] for row in counted), _total(counted)],
                )
            )
    if pair.posts:
        tables.append(
            Table(
                f"posts_{number + 1}",
                f"{versus}: posts on which they disagree, by their pairs",
                ["post", "part", *_cases(pair)],
                [[row.name, row.part, *map(str, _counts(row))] for row in pair.posts],
                left=2,
            )
        )
    return tables


def score(rows: Sequence[ComparedFigure]) -> str:
    """Return how many criteria the first system wins, ties and loses."""
    n = Counter(row.result for row in rows)
    few = f", too few posts {n['too few']}" if n["too few"] else ""
    return f"Wins {n['win']}, ties {n['tie']}, losses {n['loss']}{few}"


def answer(pair: ComparedPair) -> str:
    """Return in a sentence what the first headline figure says of two systems."""
    row = pair.headline[0]
    verb = {"win": "is better than", "loss": "is worse than"}.get(
        str(row.result), "is not shown to differ from"
    )
    _, _, difference, p, *_ = _cells(row, adjusted=False)
    return f"By {row.figure}, {pair.first} {verb} {pair.second}: {difference}, p {_sign(p)}."


def _sign(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def introduction(comparison: SystemComparison) -> list[str]:
    """Return what was compared in a sentence, and what a reader must know."""
    systems = [
        f"{name} ({n} {'training' if n == 1 else 'trainings'})"
        for name, n in comparison.n_trainings.items()
    ]
    return [
        f"Task {comparison.task} on {comparison.split}: {comparison.n_posts} posts, "
        f"{comparison.n_groups} authors or posts; {', '.join(systems)}. Differences are the first "
        "system minus the second; it wins or loses where the adjusted p is at most 0.05.",
        *comparison.notes,
    ]


def summary(comparison: SystemComparison) -> str:
    """Render a comparison for the console."""
    blocks = introduction(comparison)
    for number, pair in enumerate(comparison.pairs):
        blocks += [answer(pair), *map(_rendered, tables_of(comparison, number))]
    return "\n\n".join(blocks)


def _rendered(table: Table) -> str:
    rows = [list(map(str, row)) for row in table.rows]
    notes = list(table.notes)
    if table.name.startswith("posts_") and len(rows) > MAX_POSTS:
        notes.append(f"and {len(rows) - MAX_POSTS} more: posts.csv")
        rows = rows[:MAX_POSTS]
    return "\n".join([table.caption, render_table([table.head, *rows], left=table.left), *notes])


def _cells(row: ComparedFigure, *, adjusted: bool) -> list[str]:
    found = row.found
    if found is None:
        return ["n/a"] * 4 + ["n/a"] * adjusted + ["undefined"]
    interval = (
        "[too few]"
        if found.ci_low is None
        else f"[{format_value(found.ci_low, '+.3f')}, {format_value(found.ci_high, '+.3f')}]"
    )
    return [
        format_value(found.first),
        format_value(found.second),
        f"{format_value(found.difference, '+.3f')} {interval}",
        p_value(found.p_value),
        *([p_value(row.p_adjusted)] if adjusted else []),
        str(row.result),
    ]


def p_value(value: float | None) -> str:
    """Return a p-value as text."""
    return "< 0.0001" if value is not None and value < 0.0001 else format_value(value, ".4f")


def _cases(pair: ComparedPair) -> list[str]:
    return ["both right", f"only {pair.first}", f"only {pair.second}", "both wrong"]


def _total(rows: Sequence[Agreement]) -> list[str]:
    columns = zip(*map(_counts, rows), strict=True)
    return ["all", *(str(sum(column)) for column in columns)]


def _counts(row: Agreement) -> tuple[int, int, int, int]:
    return row.both_right, row.only_first, row.only_second, row.both_wrong
