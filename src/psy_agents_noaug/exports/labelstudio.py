"""Predictions as pre-annotations of Label Studio, to be corrected there and imported again.

The format is that of https://labelstud.io/guide/predictions. Offsets are UTF-16 units.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from psy_agents_noaug.config.loading import as_of_today, validate_train_config
from psy_agents_noaug.config.schema import ExportConfig
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.data.offsets import OffsetStyle, from_code_points
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.tables import read_table
from psy_agents_noaug.data.validation import Fault, quote_identifier, raise_faults
from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.run.data import label_corpus
from psy_agents_noaug.run.directory import RunDirectory
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
    sentence_of = [sentences.get(str(line.get("example_id"))) for line in lines]
    by_post = _grouped(directory.predictions_of(settings.split), lines, sentence_of, texts, names)
    return _Predictions(by_post, texts, names, path.resolve().name)


def _of_file(path: Path, settings: ExportConfig) -> _Predictions:
    """Read a file of `psy-agents predict`, with the posts of a table or of its own column `text`."""
    if path.parent.name == "predictions" and (path.parent.parent / "config.yaml").is_file():
        raise ConfigError(f"For the predictions of a run give its directory: {path.parent.parent}")
    lines = _lines(path)
    if settings.posts is not None:
        table = read_table(Path(settings.posts))
        if missing := [name for name in ("post_id", "text") if name not in table]:
            raise DataError(
                f"{settings.posts}: must have the columns post_id and text, not {missing}."
            )
        groups = table["group_id"] if "group_id" in table else [None] * len(table)
        rows = zip(table["post_id"], table["text"], groups, strict=True)
        texts = {post_id: _Text(text, group) for post_id, text, group in rows if post_id and text}
    else:
        texts = {
            str(r["post_id"]): _Text(r["text"]) for r in lines if isinstance(r.get("text"), str)
        }
        if not texts:
            raise ConfigError("`posts` must name the table of the posts: posts=FILE.")
    known = {criterion.criterion_id: criterion.name for criterion in MAJOR_DEPRESSIVE_EPISODE}
    ids = dict.fromkeys(str(line.get("criterion_id")) for line in lines)
    names = {i: known[i] for i in ids} if ids.keys() <= known.keys() else {i: i for i in ids}
    sentence_of = [_span(line) for line in lines]
    return _Predictions(_grouped(path, lines, sentence_of, texts, names), texts, names, path.stem)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of predictions.

    Raises:
        DataError: it cannot be read.
    """
    try:
        rows = _rows(path)
    except (OSError, ValueError, RecursionError) as error:  # those of pyarrow are among them
        raise DataError(f"{path} cannot be read as predictions ({type(error).__name__}).") from None
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} cannot be read as predictions: a line is no object.")
    return rows


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    if path.suffix.lower() == ".csv":
        rows_of_text: list[dict[Any, Any]] = read_table(path).to_dict("records")
        for record in rows_of_text:
            record["evidence"] = json.loads(record.get("evidence") or "[]")
        return rows_of_text
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def _span(value: Mapping[str, Any]) -> Span | None:
    """Return the span of a sentence or a piece of evidence, None if there is none."""
    try:
        return Span(int(value["start_char"]), int(value["end_char"]))
    except (KeyError, TypeError, ValueError):
        return None


def _grouped(
    path: Path,
    lines: Sequence[Mapping[str, Any]],
    sentences: Sequence[Span | None],
    texts: Mapping[str, _Text],
    names: Mapping[str, str],
) -> dict[str, _Prediction]:
    """Return what is predicted of each post.

    A criterion is met where the decision says so, or, without decisions, where there is evidence.
    """
    found: dict[str, _Prediction] = {}
    faults: list[Fault] = []
    for number, (line, sentence) in enumerate(zip(lines, sentences, strict=True), start=1):
        place = f"{path.name}, line {number}"
        post_id, criterion_id = str(line.get("post_id")), str(line.get("criterion_id"))
        if post_id not in texts or criterion_id not in names:
            rule = "must be of a post and a criterion that are known"
            faults.append(Fault(place, rule, quote_identifier(post_id)))
            continue
        own = found.setdefault(post_id, _Prediction())
        evidence = line.get("evidence") or ()
        decision = line.get("decision")
        is_met = bool(evidence) if decision is None else str(decision) in ("1", "1.0", "True")
        if not is_met:
            continue
        own.met[criterion_id] = None
        spans = [(_span(piece), piece.get("score")) for piece in evidence]
        if sentence is not None and not spans:
            spans = [(sentence, line.get("probability"))]
        for span, score in spans:
            if span is None or not 0 <= span.start_char < span.end_char <= len(texts[post_id].text):
                faults.append(Fault(place, "must have evidence inside of the text of its post"))
            else:
                own.spans.append((criterion_id, span, None if score is None else float(score)))
    raise_faults(f"{path} cannot be exported:", faults)
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
