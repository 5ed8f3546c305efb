"""What can be read of a corpus that breaks the data contract."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from psy_agents_noaug.config.schema import DataConfig
from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.splits import read_splits
from psy_agents_noaug.data.tables import read_table
from psy_agents_noaug.data.validation import (
    Table,
    columns_of_file,
    quote_identifier,
    rename_columns,
)
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.run.data import data_folder

_MAX_LABELS = 30


@dataclass(frozen=True)
class TableFacts:
    """A table, as far as it can be read.

    Args:
        kind: posts, annotations or criteria.
        file: its name.
        rows: None: it cannot be read.
        columns: our names of those that it has.
    """

    kind: str
    file: str
    rows: int | None
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Salvage:
    """What can be read of a corpus with faults.

    Args:
        tables: those that are configured.
        posts: those with an id and a text; of several with one id the first.
        labels: rows of the annotations, by criterion and status as they are written; the most frequent.
        n_labels: how many labels there are.
        faults: further ones, which the corpus's own faults hide from a training.
    """

    tables: tuple[TableFacts, ...]
    posts: tuple[Post, ...]
    labels: Mapping[tuple[str, str], int]
    n_labels: int
    faults: tuple[str, ...]


def salvage(config: DataConfig) -> Salvage:
    """Read the tables of files one by one, without checks of their cells."""
    if config.source == "hub":
        return Salvage((), (), {}, 0, ())
    found: dict[str, Table] = {}
    facts = []
    for kind, name in (
        ("posts", config.posts),
        ("annotations", config.annotations),
        ("criteria", config.criteria),
    ):
        if name is None:
            continue
        path, columns = data_folder(config) / name, dict(config.columns.get(kind, {}))  # type: ignore[call-overload]
        try:
            frame = read_table(path, columns_of_file(kind, columns))
        except DataError:  # which is among the faults of the corpus
            facts.append(TableFacts(kind, path.name, None))
            continue
        found[kind], _ = rename_columns(frame, file=path.name, kind=kind, columns=columns)
        facts.append(TableFacts(kind, path.name, len(frame), tuple(found[kind].frame.columns)))
    posts = _posts(found.get("posts"))
    labels = _labels(found.get("annotations"))
    return Salvage(
        tuple(facts),
        _first_of_each(post for post in posts if post.text),
        dict(sorted(labels.most_common(_MAX_LABELS))),
        len(labels),
        _split_faults(config, _first_of_each(posts)),
    )


def _posts(table: Table | None) -> list[Post]:
    """Return the rows that have an id, also those without a text."""
    if table is None:
        return []
    cells = zip(*(table.values(name) for name in ("post_id", "text", "group_id")), strict=True)
    return [
        Post(post_id, text or "", (group_id or "").strip() or post_id)
        for post_id, text, group_id in cells
        if post_id
    ]


def _first_of_each(posts: Iterable[Post]) -> tuple[Post, ...]:
    found: dict[str, Post] = {}
    for post in posts:
        found.setdefault(post.post_id, post)
    return tuple(found.values())


def _labels(table: Table | None) -> Counter[tuple[str, str]]:
    """Count the labels; what does not look like one may be the text of a post and is not shown."""
    if table is None:
        return Counter()
    cells = zip(*(table.values(name) for name in ("criterion_id", "status")), strict=True)
    return Counter((_shown(criterion), _shown(status)) for criterion, status in cells)


def _shown(cell: str | None) -> str:
    return "(empty)" if cell is None else quote_identifier(cell).strip("'")


def _split_faults(config: DataConfig, posts: tuple[Post, ...]) -> tuple[str, ...]:
    """Return the faults of the split file, which a training looks at only if the tables have none."""
    if config.splits is None or not posts:
        return ()
    try:
        read_splits(data_folder(config) / config.splits, posts=posts)
    except DataError as error:
        return (str(error),)
    return ()
