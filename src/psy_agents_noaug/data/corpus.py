"""The corpus: posts, annotations and criteria, validated as a whole before they are used."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE, Criterion
from psy_agents_noaug.data.labels import BINARY, LabelScale
from psy_agents_noaug.data.offsets import CODE_POINTS, OffsetStyle, to_code_points
from psy_agents_noaug.data.tables import read_hub, read_table
from psy_agents_noaug.data.validation import (
    Fault,
    Table,
    add_subgroups,
    annotation_faults,
    column_faults,
    columns_of_file,
    criteria_faults,
    criterion_names,
    drop_missing_evidence,
    parse_offset,
    post_faults,
    quote_label,
    raise_faults,
    rename_columns,
    resolve_criterion,
    split_aliases,
)
from psy_agents_noaug.errors import ConfigError, DataError, first_of
from psy_agents_noaug.utils.files import sha256_of_json


@dataclass(frozen=True, slots=True)
class Post:
    """A post. Posts with the same `group_id` stay in one split; it is `post_id` if none is given.

    Attributes:
        subgroups: its value in each column of `data.subgroups`.
    """

    post_id: str
    text: str
    group_id: str
    subgroups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Annotation:
    """One row of the annotations.

    Attributes:
        status: 0 for explicitly not met, above 0 for met.
        start_char: first code point of the evidence.
        end_char: code point after the evidence.
        row: 1-based number of the record in the file, for messages and reports.
    """

    post_id: str
    criterion_id: str
    status: float
    evidence_text: str | None
    start_char: int | None
    end_char: int | None
    sentence_id: str | None
    row: int
    annotator_id: str | None = None

    @property
    def has_evidence(self) -> bool:
        """Whether the row is about a part of the post, found in it or not."""
        parts = (self.start_char, self.end_char, self.evidence_text, self.sentence_id)
        return any(part is not None for part in parts)


@dataclass(frozen=True, slots=True)
class Corpus:
    """A valid corpus. Its order does not depend on the order of rows in the files.

    Attributes:
        posts: sorted by identifier.
        annotations: sorted by content.
        criteria: sorted by identifier, with numbers as numbers (A.2 before A.10).
        ignored: number of rows left out, by label.
        fingerprint: SHA-256 of the content, independent of file format, row order and column names.
        n_missing_evidence: number of rows whose evidence text only says that there is none ("nan").
    """

    posts: tuple[Post, ...]
    annotations: tuple[Annotation, ...]
    criteria: tuple[Criterion, ...]
    ignored: dict[str, int]
    fingerprint: str
    n_missing_evidence: int = 0

    def with_annotations(self, annotations: Iterable[Annotation]) -> "Corpus":
        """Return the corpus with these annotations in place of its own, in their order."""
        rows = sorted(annotations, key=lambda annotation: (_content(annotation), annotation.row))
        content = {
            "posts": [[post.post_id, post.text, post.group_id] for post in self.posts],
            "annotations": [_content(annotation) for annotation in rows],
            "criteria": [
                [c.criterion_id, c.name, c.text, sorted(c.aliases)] for c in self.criteria
            ],
            "ignored": self.ignored,
        }
        return replace(self, annotations=tuple(rows), fingerprint=sha256_of_json(content))


def load_corpus(
    *,
    posts: Path,
    annotations: Path,
    criteria: Path | None,
    columns: Mapping[str, Mapping[str, str]],
    ignored_criteria: Sequence[str],
    labels: LabelScale = BINARY,
    offsets: OffsetStyle = CODE_POINTS,
    subgroups: Sequence[str] = (),
    held_out_criteria: Sequence[str] = (),
) -> Corpus:
    """Read and validate the three tables.

    Args:
        posts: file of posts.
        annotations: file of annotations.
        criteria: file of criteria; None for the nine criteria of `dsm5`.
        columns: per table ("posts", "annotations", "criteria"), our column names to the file's.
        ignored_criteria: labels whose rows are counted and left out; case does not matter.
        labels: the values that `status` may have.
        offsets: how the file counts `start_char` and `end_char`.
        subgroups: columns of the posts that divide them into subgroups.
        held_out_criteria: ids of criteria that will be held out of training.

    Raises:
        DataError: lists every fault of every table.
        ConfigError: a setting is invalid.
    """
    frames: dict[str, tuple[str, pd.DataFrame]] = {}
    unreadable: list[Fault] = []
    paths = {"posts": posts, "annotations": annotations, "criteria": criteria}
    for kind, path in paths.items():
        if path is not None:
            _read_into(
                frames, unreadable, kind=kind, path=path, columns=columns, subgroups=subgroups
            )
    return _corpus(
        frames,
        unreadable,
        default_criteria=criteria is None,
        columns=columns,
        ignored_criteria=ignored_criteria,
        labels=labels,
        offsets=offsets,
        subgroups=subgroups,
        held_out_criteria=held_out_criteria,
    )


def load_hub_corpus(
    *,
    repo: str,
    revision: str | None,
    criteria: Path | None,
    columns: Mapping[str, Mapping[str, str]],
    ignored_criteria: Sequence[str],
    labels: LabelScale = BINARY,
    offsets: OffsetStyle = CODE_POINTS,
    subgroups: Sequence[str] = (),
    held_out_criteria: Sequence[str] = (),
) -> Corpus:
    """Load a corpus like `load_corpus`, with posts and annotations from the Hugging Face hub."""
    posts, annotations = read_hub(repo, revision=revision, columns=columns, subgroups=subgroups)
    frames = {
        "posts": (f"{repo} posts", posts),
        "annotations": (f"{repo} annotations", annotations),
    }
    unreadable: list[Fault] = []
    if criteria is not None:
        _read_into(frames, unreadable, kind="criteria", path=criteria, columns=columns)
    return _corpus(
        frames,
        unreadable,
        default_criteria=criteria is None,
        columns=columns,
        ignored_criteria=ignored_criteria,
        labels=labels,
        offsets=offsets,
        subgroups=subgroups,
        held_out_criteria=held_out_criteria,
    )


def read_criteria(path: Path, columns: Mapping[str, str]) -> tuple[Criterion, ...]:
    """Read and check a table of criteria alone.

    Args:
        path: of the table.
        columns: our column names to the file's.

    Raises:
        DataError: lists every fault.
    """
    frame = read_table(path, columns_of_file("criteria", columns))
    table, missing = rename_columns(frame, file=path.name, kind="criteria", columns=columns)
    cells = [fault for _, _, fault in column_faults(table, BINARY)]
    raise_faults("The criteria cannot be read:", [*missing, *cells, *criteria_faults(table)])
    return _criteria(table)


def _read_into(
    frames: dict[str, tuple[str, pd.DataFrame]],
    unreadable: list[Fault],
    *,
    kind: str,
    path: Path,
    columns: Mapping[str, Mapping[str, str]],
    subgroups: Sequence[str] = (),
) -> None:
    wanted = columns_of_file(kind, columns.get(kind, {}), subgroups)
    try:
        frames[kind] = (path.name, read_table(path, wanted))
    except DataError as error:  # raised together with the faults of the other tables
        unreadable.append(Fault(kind, "cannot be read", str(error)))


def _corpus(
    frames: Mapping[str, tuple[str, pd.DataFrame]],
    unreadable: Sequence[Fault],
    *,
    default_criteria: bool,
    columns: Mapping[str, Mapping[str, str]],
    ignored_criteria: Sequence[str],
    labels: LabelScale,
    offsets: OffsetStyle,
    subgroups: Sequence[str],
    held_out_criteria: Sequence[str],
) -> Corpus:
    faults = list(unreadable)
    tables: dict[str, Table] = {}
    bad: dict[str, set[tuple[int, str]]] = {}
    n_missing = 0
    for kind, (file, frame) in frames.items():
        tables[kind], missing = rename_columns(
            frame, file=file, kind=kind, columns=columns.get(kind, {})
        )
        if kind == "posts":
            missing += add_subgroups(tables[kind], frame, subgroups, columns.get(kind, {}))
        if kind == "annotations":
            n_missing = drop_missing_evidence(tables[kind])
        cells = column_faults(tables[kind], labels)
        bad[kind] = {(row, column) for row, column, _ in cells}
        faults += [*missing, *(fault for _, _, fault in cells)]

    posts = tables.get("posts")
    texts: dict[str | None, str | None] | None = None
    if posts is not None and "post_id" in posts.frame:
        faults += post_faults(posts)
        texts = dict(zip(posts.values("post_id"), posts.values("text"), strict=True))
    criteria: tuple[Criterion, ...] = MAJOR_DEPRESSIVE_EPISODE if default_criteria else ()
    if "criteria" in tables:
        faults += criteria_faults(tables["criteria"])
        criteria = _criteria(tables["criteria"])
    names = criterion_names(criteria)
    _check_ignored(ignored_criteria, names)
    if names:  # of a criteria table that cannot be read, its own faults are enough
        faults += _held_out_faults(held_out_criteria, criteria)
    if "annotations" in tables:
        faults += annotation_faults(
            tables["annotations"],
            bad=bad["annotations"],
            texts=texts,
            names=names or None,
            ignored=ignored_criteria,
            offsets=offsets,
        )
    raise_faults("The corpus breaks the data contract:", faults)
    return _valid_corpus(
        tables,
        criteria=criteria,
        ignored_criteria=ignored_criteria,
        labels=labels,
        offsets=offsets,
        subgroups=subgroups,
        n_missing_evidence=n_missing,
    )


def _valid_corpus(
    tables: Mapping[str, Table],
    *,
    criteria: tuple[Criterion, ...],
    ignored_criteria: Sequence[str],
    labels: LabelScale,
    offsets: OffsetStyle,
    subgroups: Sequence[str],
    n_missing_evidence: int,
) -> Corpus:
    """Build the corpus from tables without faults."""
    table = tables["posts"]
    named = [f"subgroup:{name}" for name in subgroups]
    rows = zip(
        *(table.values(name) for name in ("post_id", "text", "group_id", *named)), strict=True
    )
    posts = [
        Post(
            post_id,
            text,
            (group_id or "").strip() or post_id,
            tuple(unicodedata.normalize("NFC", value or "(missing)") for value in values),
        )
        for post_id, text, group_id, *values in rows
        if post_id is not None and text is not None
    ]
    names = criterion_names(criteria)
    texts = {post.post_id: post.text for post in posts}
    spelling = {label.casefold(): label for label in ignored_criteria}
    annotations: list[Annotation] = []
    ignored: Counter[str] = Counter()
    table = tables["annotations"]
    columns = ("post_id", "criterion_id", "status", "evidence_text", "start_char", "end_char")
    further = ("sentence_id", "annotator_id")
    cells = zip(*(table.values(name) for name in (*columns, *further)), strict=True)
    for row, cell in enumerate(cells):
        post_id, label, status, evidence_text, start, end, sentence_id, annotator_id = cell
        assert post_id is not None
        assert label is not None
        assert status is not None
        value = labels.parse(status)
        assert value is not None
        criterion_id = resolve_criterion(label, names)
        if criterion_id is None:
            ignored[spelling[label.strip().casefold()]] += 1
            continue
        first, last = parse_offset(start), parse_offset(end)
        span = None
        if first is not None and last is not None:
            span = to_code_points(texts[post_id], first, last, offsets)
        annotations.append(
            Annotation(
                post_id=post_id,
                criterion_id=criterion_id,
                status=value,
                evidence_text=evidence_text,
                start_char=span.start_char if span else None,
                end_char=span.end_char if span else None,
                sentence_id=sentence_id,
                row=row + 1,
                annotator_id=annotator_id and annotator_id.strip(),
            )
        )
    posts.sort(key=lambda post: post.post_id)
    corpus = Corpus(
        posts=tuple(posts),
        annotations=(),
        criteria=criteria,
        ignored=dict(sorted(ignored.items())),
        fingerprint="",
        n_missing_evidence=n_missing_evidence,
    )
    return corpus.with_annotations(annotations)


def _content(annotation: Annotation) -> tuple[str | float, ...]:
    """Return all fields but the row as a sort key: None becomes "" or -1, which no value equals."""
    return (
        annotation.post_id,
        annotation.criterion_id,
        annotation.status,
        -1 if annotation.start_char is None else annotation.start_char,
        -1 if annotation.end_char is None else annotation.end_char,
        annotation.evidence_text or "",
        annotation.sentence_id or "",
        *(() if annotation.annotator_id is None else (annotation.annotator_id,)),
    )


def _criteria(table: Table) -> tuple[Criterion, ...]:
    columns = ("criterion_id", "name", "text", "aliases")
    cells = zip(*(table.values(column) for column in columns), strict=True)
    criteria = [
        Criterion(criterion_id, name or "", text or "", split_aliases(aliases))
        for criterion_id, name, text, aliases in cells
        if criterion_id is not None
    ]
    return tuple(sorted(criteria, key=lambda criterion: _natural(criterion.criterion_id)))


def _natural(identifier: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Return a sort key with numbers as numbers: A.2 before A.10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", identifier)
    keys = [(p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in parts]
    return keys, identifier


def _held_out_faults(labels: Sequence[str], criteria: Sequence[Criterion]) -> list[Fault]:
    """Find ids to hold out that no criterion has; one criterion at least must be left to train on."""
    place, ids = "data.held_out_criteria", [criterion.criterion_id for criterion in criteria]
    known = first_of([quote_label(criterion_id) for criterion_id in ids])
    faults = [
        Fault(place, "must be ids of criteria", quote_label(label), known if not n else "")
        for n, label in enumerate(sorted(set(labels) - set(ids)))
    ]
    if set(ids) <= set(labels):
        faults.append(Fault(place, "must leave a criterion to train on"))
    return faults


def _check_ignored(labels: Sequence[str], names: Mapping[str, str]) -> None:
    for label in labels:
        criterion_id = resolve_criterion(label, names)
        if criterion_id is not None:
            # If its rows were left out, its positive pairs would become negatives.
            raise ConfigError(
                "`ignored_criteria` must be labels that are no criterion, but "
                f"{quote_label(label)} is criterion {criterion_id}. To leave it "
                "out, give a criteria table without it."
            )
