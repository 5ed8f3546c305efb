"""Label Studio: JSON of any version (`annotations`, formerly `completions`), JSON-MIN and CSV.

The formats are those of https://labelstud.io/guide/task_format and https://labelstud.io/guide/export.
Offsets are UTF-16 units, as browsers count; those of a model's predictions may be code points.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from psy_agents_noaug.data.table_formats import DELIMITERS, parse_json
from psy_agents_noaug.data.tables import read_csv_text
from psy_agents_noaug.data.validation import Fault, quote_columns, quote_label
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.importers.documents import WHOLE_FILE, Document, Mark, Reading, Review
from psy_agents_noaug.importers.settings import ReadSettings, no_text
from psy_agents_noaug.importers.sources import SourceFile, json_values
from psy_agents_noaug.importers.values import items, mapping, name, offsets

SUFFIXES = (".json", ".jsonl", ".csv")
_SPAN_LABELS = ("labels", "hypertextlabels", "paragraphlabels")
_LABELS = (*_SPAN_LABELS, "choices", "taxonomy")
# What Label Studio adds to the columns of the data in JSON-MIN and CSV.
_OWN_COLUMNS = frozenset(
    (
        "id",
        "annotator",
        "annotation_id",
        "created_at",
        "updated_at",
        "lead_time",
        "agreement",
        "post_id",
        "group_id",
    )
)
_MAX_CHOICES = 100
_ADDRESSES = ("http://", "https://", "s3://", "gs://", "azure-blob://", "/data/", "data:")


def read(files: Sequence[SourceFile], settings: ReadSettings) -> Reading:
    """Read exports, of one kind each."""
    reading = Reading(has_versions=True)
    tables = [file for file in files if file.name.suffix.lower() == ".csv"]
    flat: list[tuple[str, Mapping[str, Any]]] = []
    for table in tables:
        flat += _csv_records(table, reading.faults)
    others = [file for file in files if file not in tables]
    for place, value in json_values(others, reading.faults):
        if not isinstance(value, dict):
            reading.faults.append(Fault(place, "must be a JSON object"))
        elif isinstance(value.get("task"), dict) and "result" in value:
            _read_task(place, {**value["task"], "annotations": [value]}, settings, reading)
        elif isinstance(value.get("data"), dict):
            _read_task(place, value, settings, reading)
        else:
            flat.append((place, value))
    if flat:
        _read_flat(flat, settings, reading)
    return reading


# ---------------------------------------------------------------------------------------------- JSON


def _read_task(
    place: str, task: Mapping[str, Any], settings: ReadSettings, reading: Reading
) -> None:
    if (identifier := name(task.get("id"))) is not None:
        place = f"{place} (task {identifier})"
    data = mapping(task["data"])
    text = _checked_text(place, data, settings, reading)
    if text is None:
        return
    counted = []
    for annotation in items(task.get("annotations", task.get("completions"))):
        if not isinstance(annotation, dict):
            reading.faults.append(Fault(place, "must have objects as annotations"))
        elif (reason := _left_reason(annotation, settings)) is not None:
            reading.left.add(reason, place)
        else:
            counted.append(annotation)
    copied = {(_annotator(a), name(a.get("parent_annotation"))) for a in counted}
    reviews = []
    for annotation in counted:
        own_id = name(annotation.get("id"))
        if own_id is not None and (_annotator(annotation), own_id) in copied:
            reading.left.add("annotations of which the annotator made a corrected copy", place)
        else:
            marks = _marks(place, items(annotation.get("result")), reading)
            reviews.append(Review(_annotator(annotation), marks, is_finished=True))
    predictions = [p for p in items(task.get("predictions")) if isinstance(p, dict)]
    if settings.with_predictions:
        for prediction in predictions:
            marks = _marks(place, items(prediction.get("result")), reading)
            model = name(prediction.get("model_version")) or "model"
            reviews.append(Review(model, marks, is_finished=True, is_of_model=True))
    else:
        reading.left.add(
            "predictions of a model (with_predictions=true reads them)", place, len(predictions)
        )
    reading.left.add("drafts", place, len(items(task.get("drafts"))))
    reading.documents.append(
        Document(
            place,
            text,
            tuple(reviews),
            document_id=settings.id_of(data, task.get("id")),
            group_id=settings.group_of(data),
            unit="utf16",
        )
    )


def _left_reason(annotation: Mapping[str, Any], settings: ReadSettings) -> str | None:
    """Return why an annotation does not count, if it does not."""
    if annotation.get("was_cancelled") is True or annotation.get("skipped") is True:
        return "annotations of tasks that the annotator skipped"
    reviews = [mapping(review) for review in items(annotation.get("reviews"))]
    if reviews and reviews[-1].get("accepted") is False:
        return "annotations that a reviewer rejected"
    if settings.ground_truth_only and annotation.get("ground_truth") is not True:
        return "annotations that are no ground truth (ground_truth_only=true)"
    return None


def _annotator(annotation: Mapping[str, Any]) -> str | None:
    """Return who made an annotation: an id, or where there is none an address."""
    by = annotation.get("completed_by", annotation.get("annotator"))
    if isinstance(by, dict):
        return name(by.get("id")) or name(by.get("email"))
    return name(by)


def _marks(place: str, results: Sequence[Any], reading: Reading) -> tuple[Mark, ...]:
    marks: list[Mark] = []
    regions, said = _regions(results)
    for result in map(mapping, results):
        kind, field = name(result.get("type")), name(result.get("from_name")) or ""
        identifier = name(result.get("id")) or ""
        if kind == "relation":
            reading.left.add("relations", place)
        elif kind in _LABELS:
            value = {**regions.get(identifier, {}), **mapping(result.get("value"))}
            others = tuple(f"{f}={v}" for f, v in said.get(identifier, ()) if f != field)
            found = _value_marks(place, value, kind, field, reading)
            marks += [replace(mark, attributes=others) for mark in found]
        elif kind != "rating" or identifier not in regions:
            reading.left.add(f"results of type {kind or 'unknown'}", place)
    return tuple(marks)


def _regions(
    results: Sequence[Any],
) -> tuple[dict[str, Mapping[str, Any]], dict[str, list[tuple[str, str]]]]:
    """Return the value of each region by id, and what was said of each: control and label or rating.

    Results of one region have one id: its labels, and the choices and ratings that are about it.
    """
    regions: dict[str, Mapping[str, Any]] = {}
    said: dict[str, list[tuple[str, str]]] = {}
    for result in map(mapping, results):
        identifier, kind = name(result.get("id")), name(result.get("type"))
        value, field = mapping(result.get("value")), name(result.get("from_name")) or ""
        if identifier is None or kind is None:
            continue
        if kind in _SPAN_LABELS:
            regions.setdefault(identifier, value)
        if kind in (*_LABELS, "rating"):
            labels = filter(None, map(_label, items(value.get(kind))))
            said.setdefault(identifier, []).extend((field, label) for label in labels)
    return regions, {identifier: said[identifier] for identifier in regions}


def _value_marks(
    place: str, value: Mapping[str, Any], kind: str, field: str, reading: Reading
) -> Iterator[Mark]:
    """Yield a mark for each label of a region, or of the document where the value has no offsets."""
    if kind == "paragraphlabels":
        reading.faults.append(
            Fault(place, "must not have regions of Paragraphs, which are not read")
        )
        return
    labels = [_label(label) for label in items(value.get(kind))]
    ranges: tuple[tuple[int, int], ...] = ()
    if kind in _SPAN_LABELS or "start" in value or "globalOffsets" in value:
        found = _range(value)
        if found is None:
            rule = "must have start and end of each region, whole numbers of characters"
            reading.faults.append(Fault(place, rule, "HyperText needs globalOffsets"))
            return
        ranges = (found,)
        if not labels:
            reading.left.add("regions without a label", place)
    text = value.get("text")
    quote = text if isinstance(text, str) and ranges else None
    for label in labels:
        if label is None:
            reading.faults.append(Fault(place, "must have labels that are text"))
        else:
            yield Mark(label, ranges, quote, field)


def _range(value: Mapping[str, Any]) -> tuple[int, int] | None:
    place = mapping(value.get("globalOffsets")) or value
    return offsets(place.get("start"), place.get("end"))


def _label(value: Any) -> str | None:
    """Return a label; that of a nested choice is its path."""
    if isinstance(value, list):
        parts = [name(part) for part in value]
        return " / ".join(part for part in parts if part) if all(parts) and parts else None
    return name(value)


def _checked_text(
    place: str, data: Mapping[str, Any], settings: ReadSettings, reading: Reading
) -> str | None:
    text = settings.text_of(data)
    is_dialogue = settings.text is None and any(map(_has_turns, data.values()))
    if text is None or is_dialogue:
        reading.faults.append(no_text(place, data))
    elif text.startswith(_ADDRESSES) and len(text.split()) == 1:
        rule = "must hold its text, not the address of a file, which is not fetched"
        reading.faults.append(Fault(place, rule))
    else:
        return text
    return None


def _has_turns(value: Any) -> bool:
    """Whether a value is a dialogue for Paragraphs, beside which no other field is the text."""
    # The text of a note on a region is a list.
    return isinstance(value, list) and any(
        isinstance(mapping(item).get("text"), str) for item in value
    )


# ------------------------------------------------------------------------------- JSON-MIN and CSV


def _csv_records(file: SourceFile, faults: list[Fault]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the records of a CSV; cells that begin as JSON are parsed."""
    try:
        frame = read_csv_text(Path(file.name), file.text(), delimiters=DELIMITERS[".csv"])
    except DataError as error:
        faults.append(Fault(str(file.name), "cannot be read", str(error)))
        return []
    return [
        (
            f"{file.name}, row {number}",
            {str(column): _cell(cell) for column, cell in row.items() if cell is not None},
        )
        for number, row in enumerate(frame.to_dict("records"), start=1)
    ]


def _cell(cell: str) -> Any:
    if cell.startswith(("[{", '{"', "[[", '["')):
        try:
            return parse_json(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _read_flat(
    records: Sequence[tuple[str, Mapping[str, Any]]], settings: ReadSettings, reading: Reading
) -> None:
    """Read records of one annotation each, whose columns are data and results side by side."""
    controls, guessed, others = _columns([record for _, record in records], settings)
    if guessed:
        reading.notes.append(
            f"Read as labels, as criteria know one of their words: {quote_columns(guessed)}. If one of "
            "them is data, name those that hold labels: fields=[...]."
        )
    if others:
        reading.notes.append(
            f"Read as data, not as labels: {quote_columns(others)}. If one of them holds labels, name "
            "all that do: fields=[...]."
        )
    if missing := sorted(set(settings.fields or ()) - controls):
        rule = "must have the columns that `fields` names"
        reading.faults.append(Fault(WHOLE_FILE, rule, quote_columns(missing)))
    if settings.ground_truth_only or settings.with_predictions:
        rule = "must be JSON for `ground_truth_only` and `with_predictions`, which JSON-MIN and CSV lack"
        reading.faults.append(Fault(WHOLE_FILE, rule))
    for place, record in records:
        if (identifier := name(record.get("id"))) is not None:
            place = f"{place} (task {identifier})"
        text = _checked_text(place, _data_of(record, controls), settings, reading)
        if text is None:
            continue
        columns = {column: record[column] for column in sorted(controls & record.keys())}
        marks = _with_attributes(place, columns, reading)
        said = {column: record.get(column) for column in (*sorted(controls), *others)}
        if unplaced := _unplaced_attributes(marks, said, settings):
            rule = (
                "must be exported as JSON: the map has an entry for a label with the value of this "
                "column, which does not say here of which region it is"
            )
            reading.faults.append(Fault(place, rule, quote_columns(unplaced)))
        is_annotated = any(record.get(key) is not None for key in ("annotation_id", "annotator"))
        review = Review(_annotator(record), tuple(marks), is_finished=is_annotated or None)
        reading.documents.append(
            Document(
                place,
                text,
                (review,),
                document_id=settings.id_of(record, record.get("id")),
                group_id=settings.group_of(record),
                unit="utf16",
            )
        )


def _unplaced_attributes(
    marks: Sequence[Mark], said: Mapping[str, Any], settings: ReadSettings
) -> list[str]:
    """Return the columns with values that the map reads as attributes of regions, but without a place.

    Label Studio writes a single choice about a region as its word alone.
    """
    labels = {(mark.label, mark.field) for mark in marks if mark.ranges}
    return [
        column
        for column, value in said.items()
        if any(
            settings.is_label(f"{label}[{attribute}]", "")
            for word in _unplaced_words(value)
            for label, field in labels
            for attribute in (column, f"{column}={word}")
            if field != column
        )
    ]


def _unplaced_words(value: Any) -> Iterator[str]:
    """Yield choices and ratings, but for those that are read as being about a region."""
    for item in items(value):
        if not isinstance(item, dict):
            given = [item]
        elif _range(item) is not None and any(kind in item for kind in _LABELS):
            continue
        else:
            given = [v for kind in (*_LABELS, "rating") for v in items(item.get(kind))]
        yield from filter(None, map(_label, given))


def _data_of(record: Mapping[str, Any], controls: Collection[str]) -> dict[str, Any]:
    """Return a record without results and what Label Studio adds."""
    left_out = _OWN_COLUMNS | set(controls)
    return {key: value for key, value in record.items() if key not in left_out}


def _columns(
    records: Sequence[Mapping[str, Any]], settings: ReadSettings
) -> tuple[set[str], list[str], list[str]]:
    """Divide the columns that are neither the text nor known.

    Returns:
        Those that hold results; those of these that hold words alone, of which one is a label; and the
        others.
    """
    columns = dict.fromkeys(column for record in records for column in record)
    controls = set(settings.fields or ()) & columns.keys()
    guessed: list[str] = []
    for column in columns.keys() - controls - _OWN_COLUMNS - {settings.text, settings.id}:
        values = [record[column] for record in records if record.get(column) is not None]
        if any(_is_result(value) for value in values):
            controls.add(column)
        elif settings.fields is None and _are_choices(column, values, settings):
            guessed.append(column)
    controls.update(guessed)
    known = {settings.text, settings.id, settings.group} | controls | _OWN_COLUMNS
    others = [
        column
        for column in columns
        if column not in known and not _is_the_text(column, records, controls, settings)
    ]
    return controls, sorted(guessed), others


def _is_the_text(
    column: str,
    records: Sequence[Mapping[str, Any]],
    controls: Collection[str],
    settings: ReadSettings,
) -> bool:
    shown = [record for record in records if column in record][:100]
    return all(settings.text_of(_data_of(r, controls)) == r[column] for r in shown)


def _is_result(value: Any) -> bool:
    """Whether a value is what Label Studio writes for regions, several choices or relations."""
    first = items(value)[0] if items(value) else None
    return bool(mapping(first).keys() & set(_LABELS))


def _are_choices(column: str, values: Sequence[Any], settings: ReadSettings) -> bool:
    given = {item for value in values for item in items(value) if isinstance(item, str)}
    return len(given) <= _MAX_CHOICES and any(settings.is_label(item, column) for item in given)


def _flat_marks(place: str, column: str, value: Any, reading: Reading) -> Iterator[Mark]:
    for item in items(None if value == "" else value):
        if isinstance(item, dict):
            kind = next((k for k in _LABELS if k in item), None)
            if kind is None:
                reading.left.add(f"results in the column {column} without labels", place)
            else:
                yield from _value_marks(place, item, kind, column, reading)
        elif (label := _label(item)) is not None:
            yield Mark(label, field=column)
        else:
            rule = f"must have labels that are text in the column {quote_label(column)}"
            reading.faults.append(Fault(place, rule))


def _with_attributes(place: str, columns: Mapping[str, Any], reading: Reading) -> list[Mark]:
    """Return the marks of a record; what several columns have at one place is about one region."""
    marks = [
        m for column, value in columns.items() for m in _flat_marks(place, column, value, reading)
    ]
    regions: Counter[tuple[str, tuple[tuple[int, int], ...]]] = Counter(
        (column, (found,))
        for column, value in columns.items()
        for item in items(value)
        if (found := _range(mapping(item))) is not None
    )
    result = []
    for mark in marks:
        others = [
            o for o in marks if mark.ranges and o.ranges == mark.ranges and o.field != mark.field
        ]
        if others and regions[mark.field, mark.ranges] > 1:
            rule = "must be JSON where several regions are at one place, with results about each"
            reading.faults.append(Fault(place, rule))
            break
        attributes = tuple(f"{other.field}={other.label}" for other in others)
        result.append(replace(mark, attributes=attributes))
    return result
