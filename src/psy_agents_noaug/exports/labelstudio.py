"""Predictions as pre-annotations of Label Studio, to be corrected there and imported again.

The format is that of https://labelstud.io/guide/predictions. Offsets are UTF-16 units.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from psy_agents_noaug.config.loading import as_of_today, validate_train_config
from psy_agents_noaug.config.schema import ExportConfig
from psy_agents_noaug.data.offsets import OffsetStyle, from_code_points
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.tables import read_table
from psy_agents_noaug.data.validation import Fault, quote_identifier, raise_faults
from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.run.data import label_corpus
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.run.prediction_rows import PredictionRow, prediction_row, read_predictions
from psy_agents_noaug.utils.files import make_folder, write_bytes

_UTF16 = OffsetStyle("utf16")
_CHOICES, _LABELS, _TEXT = "criteria", "evidence", "text"


@dataclass(frozen=True)
class _Text:
    """A post."""

    text: str
    group_id: str | None = None


@dataclass
class _Prediction:
    """What is predicted of a post: met criteria, and spans with their scores."""

    met: dict[str, None] = field(default_factory=dict)
    spans: list[tuple[str, Span, float | None]] = field(default_factory=list)


@dataclass(frozen=True)
class _Predictions:
    """Predictions with their posts.

    Args:
        by_post: in the order of the file; posts without a met criterion too.
        texts: of the posts.
        names: of the criteria, by id.
        model: the name of the run or file.
    """

    by_post: Mapping[str, _Prediction]
    texts: Mapping[str, _Text]
    names: Mapping[str, str]
    model: str


def export_predictions(settings: ExportConfig) -> str:
    """Write tasks with predictions, one for each post.

    Args:
        settings: `predictions` (a run's directory, or a file of predictions), `split` of a run, `posts`
            (a table, for a file), `output`.

    Returns:
        What was written, and the labelling interface to paste into Label Studio.

    Raises:
        ConfigError: the output is there already, or it is not known where the posts are.
        DataError: the predictions cannot be read, or are about other posts; lists all faults.
        StorageError: the file cannot be written.
    """
    assert settings.predictions is not None
    source = Path(settings.predictions)
    output = _output(settings, source)
    found = _of_run(source, settings) if source.is_dir() else _of_file(source, settings)
    tasks = [_task(post_id, found) for post_id in found.by_post]
    make_folder(output.parent)
    content = json.dumps(tasks, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    write_bytes(output, content.encode(), mode=0o600)
    n_met = sum(len(own.met) for own in found.by_post.values())
    n_spans = sum(len(own.spans) for own in found.by_post.values())
    return "\n".join(
        [
            f"{len(tasks):,} tasks with {n_met:,} met criteria and {n_spans:,} spans: {output}",
            "It holds the text of posts. The labelling interface for Label Studio (Settings, Code):",
            "",
            _interface(found.names.values()),
            "",
            "After the corrections: psy-agents import labelstudio EXPORT.json",
        ]
    )


def _output(settings: ExportConfig, source: Path) -> Path:
    if settings.output is not None:
        output = Path(settings.output)
    elif source.is_dir():
        output = source / "exports" / f"labelstudio-{settings.split}.json"
    else:
        output = source.with_name(f"{source.stem}-labelstudio.json")
    if output.suffix.lower() != ".json":
        raise ConfigError(f"`output` must be a .json file for format=labelstudio, but is {output}.")
    if output.exists():
        raise ConfigError(f"{output} is there already: remove it, or choose another `output`.")
    return output


# ---------------------------------------------------------------------------------------- predictions


def _of_run(path: Path, settings: ExportConfig) -> _Predictions:
    """Read a split of a run, with the posts of its corpus."""
    directory = RunDirectory(path)
    if not directory.config.is_file():
        raise ConfigError(f"{path} must be the directory of a run, but has no config.yaml.")
    lines = directory.read_predictions(settings.split)
    labelled = label_corpus(validate_train_config(as_of_today(directory.read_config())))
    recorded = directory.read_manifest().get("data") or {}
    if recorded.get("corpus", labelled.corpus.fingerprint) != labelled.corpus.fingerprint:
        raise DataError(
            f"{path}: the content of its corpus has changed since; train or evaluate again."
        )
    sentences = {e.example_id: e.sentence for e in labelled.examples if e.sentence is not None}
    texts = {p.post_id: _Text(p.text, p.group_id) for p in labelled.corpus.posts}
    names = {c.criterion_id: c.name for c in labelled.corpus.criteria}
    faults: list[Fault] = []
    rows = [
        replace(row, sentence=sentences.get(str(line.get("example_id"))))
        for number, line in enumerate(lines, start=1)
        if (row := prediction_row(f"line {number}", line, faults)) is not None
    ]
    by_post = _grouped(rows, texts, names, faults)
    raise_faults(f"{directory.predictions_of(settings.split)} cannot be exported:", faults)
    return _Predictions(by_post, texts, names, path.resolve().name)


def _of_file(path: Path, settings: ExportConfig) -> _Predictions:
    """Read a file of `psy-agents predict`, with the posts of a table or of its own column `text`."""
    if path.parent.name == "predictions" and (path.parent.parent / "config.yaml").is_file():
        raise ConfigError(f"For the predictions of a run give its directory: {path.parent.parent}")
    faults: list[Fault] = []
    rows = list(read_predictions(path, faults))
    if settings.posts is not None:
        texts = _posts(Path(settings.posts), faults)
    else:
        texts = _own_texts(rows, faults)
        if rows and not texts:
            raise ConfigError("`posts` must name the table of the posts: posts=FILE.")
    # The file has no names, and an id such as A.1 may be that of another disorder's criterion.
    names = {row.criterion_id: row.criterion_id for row in rows}
    by_post = _grouped(rows, texts, names, faults)
    raise_faults(f"{path} cannot be exported:", faults)
    return _Predictions(by_post, texts, names, path.stem)


def _posts(path: Path, faults: list[Fault]) -> dict[str, _Text]:
    """Return the posts of a table; faults are those that it has twice."""
    table = read_table(path)
    if missing := [name for name in ("post_id", "text") if name not in table]:
        raise DataError(f"{path}: must have the columns post_id and text, not {missing}.")
    groups = table["group_id"] if "group_id" in table else [None] * len(table)
    rows = zip(table["post_id"], table["text"], groups, strict=True)
    texts: dict[str, _Text] = {}
    for number, (post_id, text, group) in enumerate(rows, start=1):
        if not (post_id and text):
            continue
        if post_id in texts:
            place = f"{path.name}, row {number}"
            faults.append(Fault(place, "must have each post once", quote_identifier(post_id)))
        texts[post_id] = _Text(text, group)
    return texts


def _own_texts(rows: Iterable[PredictionRow], faults: list[Fault]) -> dict[str, _Text]:
    """Return the posts by the column `text`; faults are rows with another text than earlier ones."""
    texts: dict[str, _Text] = {}
    for row in rows:
        if row.text is None:
            continue
        if texts.setdefault(row.post_id, _Text(row.text)).text != row.text:
            rule = "must have the text that earlier rows of its post have"
            faults.append(Fault(row.place, rule, quote_identifier(row.post_id)))
    return texts


def _grouped(
    rows: Iterable[PredictionRow],
    texts: Mapping[str, _Text],
    names: Mapping[str, str],
    faults: list[Fault],
) -> dict[str, _Prediction]:
    """Return what is predicted of each post.

    A criterion is met where the decision says so, or, without decisions, where there is evidence.
    """
    found: dict[str, _Prediction] = {}
    for row in rows:
        if row.post_id not in texts or row.criterion_id not in names:
            rule = "must be of a post and a criterion that are known"
            faults.append(Fault(row.place, rule, quote_identifier(row.post_id)))
            continue
        own = found.setdefault(row.post_id, _Prediction())
        if row.decision is None and row.evidence is None:
            faults.append(Fault(row.place, "must have a decision or evidence"))
        if not (bool(row.evidence) if row.decision is None else row.decision):
            continue
        own.met[row.criterion_id] = None
        spans = row.evidence or ()
        if row.sentence is not None and not spans:
            spans = ((row.sentence, row.probability),)
        for span, score in spans:
            if span.end_char > len(texts[row.post_id].text):
                faults.append(Fault(row.place, "must have evidence inside of the text of its post"))
            else:
                own.spans.append((row.criterion_id, span, score))
    return found


# ---------------------------------------------------------------------------------------------- tasks


def _task(post_id: str, found: _Predictions) -> dict[str, Any]:
    """Return a task of Label Studio."""
    post, own = found.texts[post_id], found.by_post[post_id]
    result: list[dict[str, Any]] = []
    if own.met:
        choices = [found.names[criterion_id] for criterion_id in own.met]
        value: dict[str, Any] = {"choices": choices}
        result.append(_result("c0", _CHOICES, "choices", value))
    for number, (criterion_id, span, score) in enumerate(own.spans):
        start, end = from_code_points(post.text, span, _UTF16)
        words = post.text[span.start_char : span.end_char]
        labels = [found.names[criterion_id]]
        value = {"start": start, "end": end, "text": words, "labels": labels}
        entry = _result(f"s{number}", _LABELS, "labels", value)
        result.append(entry if score is None else {**entry, "score": score})
    data = {"post_id": post_id, _TEXT: post.text}
    if post.group_id is not None:
        data["group_id"] = post.group_id
    return {"data": data, "predictions": [{"model_version": found.model, "result": result}]}


def _result(name: str, control: str, kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": name, "from_name": control, "to_name": _TEXT, "type": kind, "value": value}


def _interface(names: Iterable[str]) -> str:
    """Return the labelling interface that the tasks are for."""
    quoted = [quoteattr(name) for name in names]
    return "\n".join(
        [
            "<View>",
            f'  <Choices name="{_CHOICES}" toName="{_TEXT}" choice="multiple">',
            *(f"    <Choice value={name}/>" for name in quoted),
            "  </Choices>",
            f'  <Labels name="{_LABELS}" toName="{_TEXT}">',
            *(f"    <Label value={name}/>" for name in quoted),
            "  </Labels>",
            f'  <Text name="{_TEXT}" value="${_TEXT}"/>',
            "</View>",
        ]
    )
