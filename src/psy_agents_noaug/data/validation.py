"""Every rule a corpus must keep, and all breaches of them in one error.

A fault names the file, the row (the Nth record after the header), the column and the rule. It never
quotes a cell, except for identifiers that look like identifiers.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import regex

from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.folding import fold
from psy_agents_noaug.data.labels import LabelScale
from psy_agents_noaug.data.offsets import (
    GivenSpan,
    OffsetStyle,
    suggest_style,
    to_code_points,
)
from psy_agents_noaug.errors import ConfigError, DataError, faults_message, first_of

REQUIRED_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "posts": ("post_id", "text"),
    "annotations": ("post_id", "criterion_id", "status"),
    "criteria": ("criterion_id", "name", "text"),
    "corrections": ("post_id", "criterion_id"),
}
OPTIONAL_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "posts": ("group_id",),
    "annotations": (
        "evidence_text",
        "start_char",
        "end_char",
        "sentence_id",
        "annotator_id",
        "explanation",
    ),
    "criteria": ("aliases",),
    "corrections": ("label", "start_char", "end_char", "note"),
}
_CONTRACT = frozenset(
    name
    for columns in (REQUIRED_COLUMNS, OPTIONAL_COLUMNS)
    for names in columns.values()
    for name in names
)
MAX_FAULTS_LISTED = 50
MAX_ID_LENGTH, MAX_ID_WORDS = 128, 4
_IDENTIFIERS = ("post_id", "group_id", "sentence_id", "annotator_id")
_SHOWN = (*_IDENTIFIERS, "criterion_id", "name")
MAX_SUBGROUPS = 20
MAX_SUBGROUP_LENGTH = 24
_SUBGROUP = regex.compile(rf"[\w\p{{M}} .+<>=()-]{{0,{MAX_SUBGROUP_LENGTH}}}")
# The names of the subgroups that every report has.
OWN_SUBGROUPS = ("length", "number met", "truncation")
_MAX_LABEL, _MAX_LABEL_WORDS = 64, 4

_INTEGER = re.compile(r"-?[0-9]{1,18}(\.0*)?")
_IDENTIFIER = re.compile(r"[!-~]{1,64}")
# How programs write an empty cell, casefolded.
_NO_EVIDENCE = frozenset({"nan", "none", "null", "n/a", "na", "<na>", "#n/a", "-", "--", "–", "—"})
UNREADABLE = re.compile(r"[\x00\ud800-\udfff]")
# Zero-width spaces are what editors of posts leave in an empty one; a model judges it all the same.
VISIBLE = regex.compile(r"[^\s\p{Cc}\p{Default_Ignorable_Code_Point}]")


@dataclass(frozen=True, slots=True)
class Fault:
    """One breach.

    Attributes:
        place: file, row and column.
        rule: that is broken.
        detail: what may be told of the breach.
        known: what would keep the rule, for the first fault of its kind.
    """

    place: str
    rule: str
    detail: str = ""
    known: str = ""

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.place}: {self.rule}{detail}{f'; known: {self.known}' if self.known else ''}"


@dataclass(frozen=True, slots=True)
class Table:
    """A table as read, or a part of one.

    Attributes:
        file: its name.
        kind: posts, annotations or criteria.
        frame: has our column names, and its cells are str or None.
        first_row: number of the first row in the file, from 1.
    """

    file: str
    kind: str
    frame: pd.DataFrame
    first_row: int = 1

    def place(self, row: int, column: str) -> str:
        """Name the cell in the 0-based `row`, as messages do."""
        return f"{self.file}, row {self.number(row)}, column {column}"

    def number(self, row: int) -> int:
        """Return the number in the file of the 0-based `row`."""
        return row + self.first_row

    def values(self, column: str) -> list[str | None]:
        """Return a column's cells, all None where the file does not have it."""
        if column not in self.frame:
            return [None] * len(self.frame)
        return list(self.frame[column])


def raise_faults(headline: str, faults: Sequence[Fault]) -> None:
    """Raise one DataError for all `faults`: the first 50 in full, the rest counted by rule."""
    if not faults:
        return
    lines = [str(fault) for fault in faults[:MAX_FAULTS_LISTED]]
    rest = Counter(fault.rule for fault in faults[MAX_FAULTS_LISTED:])
    lines += [f"and {count} more of: {rule}" for rule, count in rest.items()]
    raise DataError(faults_message(headline, lines))


def quote_identifier(identifier: str) -> str:
    """Quote an identifier, unless it might be text that stands where an identifier should."""
    if _IDENTIFIER.fullmatch(identifier):
        return f"'{identifier}'"
    return f"<{len(identifier)} characters, not shown>"


def quote_label(name: str) -> str:
    """Quote the name of a criterion or a column, which may have spaces, unless it is long."""
    is_short = len(name) <= _MAX_LABEL and len(name.split()) <= _MAX_LABEL_WORDS
    return f"'{name}'" if is_short and name.isprintable() else quote_identifier(name)


def quote_columns(names: Sequence[str], known: Iterable[str] = ()) -> str:
    """List column names. A file without a header has the text of a post where they should be.

    Short names with spaces are therefore shown only beside a name of the data contract, spelt in any way
    (`Post ID`), or a known one.

    Args:
        names: of the columns.
        known: names that the file is said to have.
    """
    is_header = not _CONTRACT.isdisjoint(map(_spelt, names)) or not set(known).isdisjoint(names)
    quote = quote_label if is_header else quote_identifier
    return ", ".join(map(quote, names)) or "none"


def _spelt(name: str) -> str:
    """Spell the name of a column as the data contract does."""
    return re.sub(r"[\W_]+", "_", name.strip().casefold())


def _names_a_subgroup(value: str) -> bool:
    return bool(_SUBGROUP.fullmatch(value)) and len(value.split()) <= 3


def columns_of_file(
    kind: str, columns: Mapping[str, str], subgroups: Sequence[str] = ()
) -> set[str]:
    """Return the file's names of the columns that are read.

    Args:
        kind: of the table.
        columns: our column names to the file's.
        subgroups: further columns of the posts, by the file's names.
    """
    known = (*REQUIRED_COLUMNS[kind], *OPTIONAL_COLUMNS[kind])
    wanted = {columns.get(name, name).strip() for name in known}
    return wanted | set(subgroups) if kind == "posts" else wanted


def add_subgroups(
    posts: Table, frame: pd.DataFrame, names: Sequence[str], columns: Mapping[str, str]
) -> list[Fault]:
    """Add the columns that divide the posts into subgroups, as `subgroup:<name>`.

    Names and values become part of metric names: they must be short, few and without a slash.

    Args:
        posts: the table with our column names.
        frame: the table as read.
        names: of the columns.
        columns: our column names to the file's.
    """
    faults = []
    for name in names:
        place = f"{posts.file}, column {name}"
        if name in (columns.get(own, own).strip() for own in REQUIRED_COLUMNS["posts"]):
            faults.append(Fault(place, "cannot divide posts into subgroups"))
        elif name in OWN_SUBGROUPS:
            rule = "has the name of a subgroup that every report has; rename the column"
            faults.append(Fault(place, rule))
        elif name not in frame:
            found = f"the file has {quote_columns(list(frame.columns), columns.values())}"
            faults.append(Fault(place, "is missing", found))
        elif (n_values := len(set(frame[name]))) > MAX_SUBGROUPS:
            rule = f"must have at most {MAX_SUBGROUPS} different values to make subgroups"
            faults.append(Fault(place, rule, f"it has {n_values}"))
        elif not all(_names_a_subgroup(value or "") for value in (name, *frame[name])):
            rule = (
                "must have a name and values of at most three words to make subgroups, and "
                f"{MAX_SUBGROUP_LENGTH} letters, digits, spaces and . _ - + < > = ( )"
            )
            faults.append(Fault(place, rule))
        else:
            posts.frame[f"subgroup:{name}"] = frame[name]
    return faults


def required_columns_of_file(kind: str, columns: Mapping[str, str]) -> set[str]:
    """Return the file's names of the columns that a table must have."""
    return {columns.get(name, name).strip() for name in REQUIRED_COLUMNS[kind]}


def rename_columns(
    frame: pd.DataFrame, *, file: str, kind: str, columns: Mapping[str, str]
) -> tuple[Table, list[Fault]]:
    """Give a table our column names, and find the columns that are missing.

    `columns` maps our names to the file's; a name that is not mapped is the same in the file.
    Optional columns may be absent, unless they are mapped to another name: that is taken as a
    statement that the file has them.

    Raises ConfigError if `columns` maps a name that the table does not have.
    """
    known = (*REQUIRED_COLUMNS[kind], *OPTIONAL_COLUMNS[kind])
    unknown = sorted(set(columns) - set(known))
    if unknown:
        raise ConfigError(
            f"`columns.{kind}` must map {', '.join(known)}, but maps {', '.join(unknown)} instead."
        )
    ours: dict[str, Any] = {}
    faults: list[Fault] = []
    for name in known:
        source = columns.get(name, name).strip()
        if source in frame:
            ours[name] = frame[source]
        elif name in REQUIRED_COLUMNS[kind] or source != name:
            found = f"the file has {quote_columns(list(frame.columns), columns.values())}"
            faults.append(Fault(f"{file}, column {source}", "is missing", found))
    return Table(file, kind, pd.DataFrame(ours, index=frame.index, dtype=object)), faults


def parse_offset(value: str | None) -> int | None:
    """Return an offset in code points; `3.0`, as pandas writes integers beside gaps, is 3."""
    return None if value is None else int(value.split(".")[0])


def drop_missing_evidence(annotations: Table) -> int:
    """Empty the cells of `evidence_text` that only say that there is none.

    A post may hold these words, but evidence that is nothing else is taken for a missing value, unless
    offsets say where it is.

    Returns:
        How many annotations are left without evidence by it.
    """
    if "evidence_text" not in annotations.frame:
        return 0
    cells = annotations.values("evidence_text")
    kept = [None if (cell or "").strip().casefold() in _NO_EVIDENCE else cell for cell in cells]
    annotations.frame["evidence_text"] = pd.Series(
        kept, index=annotations.frame.index, dtype=object
    )
    offsets = zip(annotations.values("start_char"), annotations.values("end_char"), strict=True)
    return sum(
        cell is not None and left is None and None in span
        for cell, left, span in zip(cells, kept, offsets, strict=True)
    )


def column_faults(table: Table, labels: LabelScale) -> list[tuple[int, str, Fault]]:
    """Check each cell on its own; returns (0-based row, column, fault)."""
    found = [
        (row, column, Fault(table.place(row, column), rule))
        for column in map(str, table.frame.columns)
        for row, value in enumerate(table.values(column))
        if (rule := _broken_rule(table.kind, column, value, labels)) is not None
    ]
    if table.frame.empty and table.kind != "criteria":
        found.append((0, "", Fault(table.file, "must have at least one row")))
    return sorted(found, key=lambda fault: (fault[0], fault[1]))


def post_faults(posts: Table) -> list[Fault]:
    """Find posts whose identifier another row has already."""
    return _duplicate_faults(posts, "post_id")


def criteria_faults(criteria: Table) -> list[Fault]:
    """Find identifiers that occur twice, and aliases that could mean two criteria."""
    faults = _duplicate_faults(criteria, "criterion_id")
    if criteria.frame.empty:
        faults.append(Fault(criteria.file, "must have at least one row"))
    owners: dict[str, int] = {}
    for row, criterion_id in enumerate(criteria.values("criterion_id")):
        if criterion_id is not None:
            owners.setdefault(criterion_id.casefold(), row)
    for row, aliases in enumerate(criteria.values("aliases")):
        for alias in split_aliases(aliases):
            owner = owners.setdefault(alias.casefold(), row)
            if owner != row:
                detail = f"{quote_label(alias)} is also a name of row {criteria.number(owner)}"
                rule = "must be no name of another criterion"
                faults.append(Fault(criteria.place(row, "aliases"), rule, detail))
    return faults


def annotation_faults(
    annotations: Table,
    *,
    bad: set[tuple[int, str]],
    texts: Mapping[str | None, str | None] | None,
    names: Mapping[str, str] | None,
    ignored: Sequence[str],
    offsets: OffsetStyle,
    suggests_style: bool = True,
) -> list[Fault]:
    """Check annotations against posts and criteria, and their offsets against the text.

    `bad` are the cells already faulted; `texts` the posts by identifier, `names` the criterion
    identifiers by every name (aliases casefolded), each None where that table could not be read.
    `offsets` is how the offsets are counted; if another way fits most wrong ones, a fault names it, if
    it `suggests_style`.
    """
    faults: list[Fault] = []
    doubtful: list[GivenSpan] = []
    skipped = {label.casefold() for label in ignored}
    shown = _ShownIdentifiers(texts, names)
    columns = ("post_id", "criterion_id", "evidence_text", "start_char", "end_char")
    cells = zip(*(annotations.values(column) for column in columns), strict=True)
    for row, (post_id, label, evidence, start_cell, end_cell) in enumerate(cells):

        def fault(
            column: str, rule: str, detail: str = "", known: str = "", row: int = row
        ) -> None:
            faults.append(Fault(annotations.place(row, column), rule, detail, known))

        if texts is not None and post_id is not None and post_id not in texts:
            detail = quote_identifier(post_id)
            fault("post_id", "must be in the posts", detail, shown.known_posts())
        if (
            names is not None
            and label is not None
            and (row, "criterion_id") not in bad
            and resolve_criterion(label, names) is None
            and label.strip().casefold() not in skipped
        ):
            rule = "must be a criterion or an alias"
            fault("criterion_id", rule, shown.criterion(label), shown.known_criteria())
        if bad & {(row, "start_char"), (row, "end_char")}:
            continue
        start, end = parse_offset(start_cell), parse_offset(end_cell)
        if start is None and end is None:
            continue
        if start is None or end is None:
            fault("start_char" if start is None else "end_char", "must come with the other offset")
            continue
        text = None if texts is None or post_id is None else texts.get(post_id)
        if start < 0:
            fault("start_char", "must not be negative", str(start))
            continue
        if start >= end + offsets.inclusive_ends:
            fault("end_char", "must be greater than start_char", f"{start} and {end}")
            continue
        if text is None:
            continue
        given = None if (row, "evidence_text") in bad else evidence
        span = to_code_points(text, start, end, offsets)
        if span is None:
            detail = f"{end}, but the text has {len(text)} characters"
            fault("end_char", "must not be beyond the text", detail)
        elif not (words := text[span.start_char : span.end_char]).strip():
            fault("start_char", "must begin a span that is more than whitespace")
            continue
        elif given is not None and fold(given) != fold(words):
            fault("evidence_text", "must be the text at start_char and end_char")
        else:
            continue
        doubtful.append(GivenSpan(text, start, end, given))
    if suggests_style and doubtful and (suggested := suggest_style(doubtful, current=offsets)):
        style, mended = suggested
        place = f"{annotations.file}, columns start_char and end_char"
        detail = (
            f"`{style.settings(current=offsets)}` mends {mended} of the {len(doubtful)} wrong rows"
        )
        faults.insert(0, Fault(place, "must be counted as the settings say", detail))
    return faults


def split_aliases(cell: str | None) -> tuple[str, ...]:
    """Split the `|`-separated aliases of a criterion."""
    return tuple(alias.strip() for alias in (cell or "").split("|") if alias.strip())


def criterion_names(criteria: Sequence[Criterion]) -> dict[str, str]:
    """Map every name of a criterion to its identifier: identifiers as they are, all others casefolded.

    Names and casefolded identifiers that could mean two criteria mean none.
    """
    aliases = {a.casefold(): c.criterion_id for c in criteria for a in c.aliases}
    others = [(n.strip().casefold(), c) for c in criteria for n in (c.criterion_id, c.name)]
    owners: dict[str, set[str]] = {}
    for name, criterion in others:
        owners.setdefault(name, set()).add(criterion.criterion_id)
    names = {name: next(iter(ids)) for name, ids in owners.items() if len(ids) == 1}
    return names | aliases | {c.criterion_id: c.criterion_id for c in criteria}


def resolve_criterion(label: str, names: Mapping[str, str]) -> str | None:
    """Return the identifier that a label of an annotation means, or None."""
    return names.get(label) or names.get(" ".join(label.split()).casefold())


class _ShownIdentifiers:
    """What messages show of unknown identifiers, and once what is known.

    Args:
        texts: the posts by identifier, None where they could not be read.
        names: the criterion identifiers by every name.
    """

    def __init__(
        self, texts: Mapping[str | None, str | None] | None, names: Mapping[str, str] | None
    ) -> None:
        self._texts = texts or {}
        self._posts = [post_id for post_id in self._texts if post_id is not None]
        self._criteria = list(dict.fromkeys((names or {}).values()))
        self._labels: dict[str, str] = {}
        self._folded: str | None = None

    def criterion(self, label: str) -> str:
        """Quote a criterion's label: it may have spaces, but not be text that a post has."""
        if label not in self._labels and len(self._labels) <= MAX_FAULTS_LISTED:
            is_shown = self._texts and not self._is_in_a_post(label)
            quote = quote_label if is_shown else quote_identifier
            self._labels[label] = quote(label)
        return self._labels.get(label, "")

    def known_posts(self) -> str:
        """List the first identifiers of posts; nothing when asked again."""
        known, self._posts = self._posts, []
        return first_of([quote_identifier(post_id) for post_id in known])

    def known_criteria(self) -> str:
        """List the criteria; nothing when asked again."""
        known, self._criteria = self._criteria, []
        return first_of([quote_label(criterion_id) for criterion_id in known])

    def _is_in_a_post(self, label: str) -> bool:
        if self._folded is None:
            self._folded = "\n".join(fold(text) for text in self._texts.values() if text)
        return fold(label) in self._folded


def _duplicate_faults(table: Table, column: str) -> list[Fault]:
    first: dict[str, int] = {}
    faults = []
    for row, value in enumerate(table.values(column)):
        if value is not None and first.setdefault(value, row) != row:
            detail = f"{quote_identifier(value)} is in row {table.number(first[value])} too"
            faults.append(Fault(table.place(row, column), "must be unique", detail))
    return faults


def _broken_rule(kind: str, column: str, value: str | None, labels: LabelScale) -> str | None:
    """Return the rule that a cell breaks, or None."""
    if value is None:
        return "must not be missing" if column in REQUIRED_COLUMNS[kind] else None
    if UNREADABLE.search(value):
        return "must not hold NUL or unpaired surrogates"
    if column in ("start_char", "end_char"):
        return None if _INTEGER.fullmatch(value) else "must be an integer"
    if column in _IDENTIFIERS and (len(value) > MAX_ID_LENGTH or len(value.split()) > MAX_ID_WORDS):
        return (
            f"must be an identifier: at most {MAX_ID_LENGTH} characters and {MAX_ID_WORDS} words, as it "
            "stands in predictions; is a column of text mapped to it?"
        )
    if column in _SHOWN and not value.isprintable():
        return "must be printable, without control characters, as it stands in tables and logs"
    if column in ("status", "label"):
        return labels.rule if labels.parse(value) is None else None
    if column in ("explanation", "aliases", "note") or VISIBLE.search(value):
        return None
    return "must not be only whitespace or invisible characters"
