"""doccano: JSONL and JSON of all versions, and the archive with a file for each annotator.

The formats are those that doccano's `data_export` writes: `label` with names or [start, end, name],
`entities` and `relations`, `cats`; in old versions `labels`, or `annotations` with the ids of labels and
users. Offsets are code points.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from psy_agents_noaug.data.validation import Fault
from psy_agents_noaug.importers.documents import Mark, Reading, Review
from psy_agents_noaug.importers.settings import ReadSettings
from psy_agents_noaug.importers.sources import SourceFile, json_values
from psy_agents_noaug.importers.values import items, mapping, name, offsets

SUFFIXES = (".jsonl", ".json")
# Files of an archive that are of no single annotator.
_OF_ALL = ("all", "unknown")
_LABEL_LISTS = ("label", "labels", "cats", "entities")


def read(files: Sequence[SourceFile], settings: ReadSettings) -> Reading:
    """Read exports; of an archive or several files each is an annotator's, named by it."""
    reading = Reading()
    for file in files:
        is_of_one = len(files) > 1 or len(file.name.parts) > 1
        annotator = file.name.stem if is_of_one and file.name.stem not in _OF_ALL else None
        faults: list[Fault] = []
        values = json_values([file], faults, with_names=len(files) > 1)
        if len(files) > 1:  # what is no record may be of any document of the other files
            records = {place for place, value in values if isinstance(value, dict)}
            reading.unknown |= {fault.place for fault in faults} - records
            reading.unknown |= {place for place, _ in values} - records
        for place, value in values:
            _read_record(place, value, annotator, settings, reading)
        reading.faults += faults
    return reading


def _read_record(
    place: str, record: Any, annotator: str | None, settings: ReadSettings, reading: Reading
) -> None:
    if not isinstance(record, dict):
        reading.faults.append(Fault(place, "must be a JSON object"))
        return
    document = settings.document_of(place, record, reading, without=_LABEL_LISTS)
    if document is None:
        return
    by_user: dict[str | None, list[Mark]] = {}
    for user, mark in _marks(place, record, annotator, reading):
        by_user.setdefault(user, []).append(mark)
    for key in ("Comments", "comments"):
        reading.left.add("comments", place, len(items(record.get(key))))
    is_approved = record.get("annotation_approver") is not None or None
    reviews = tuple(Review(user, tuple(marks), is_approved) for user, marks in by_user.items())
    reviews = reviews or (Review(annotator, (), is_approved),)
    reading.documents.append(replace(document, reviews=reviews))


def _marks(
    place: str, record: Mapping[str, Any], annotator: str | None, reading: Reading
) -> Iterator[tuple[str | None, Mark]]:
    """Yield each label with its annotator."""
    for key in _LABEL_LISTS:
        for value in items(record.get(key)):
            mark = _mark(value)
            if mark is not None:
                yield annotator, mark
            else:
                rule = f"must have in `{key}` names, [start, end, name], or objects with offsets"
                reading.faults.append(Fault(place, rule))
    for value in items(record.get("annotations")):
        mark = _mark(value)
        if mark is None:
            reading.faults.append(Fault(place, "must have in `annotations` objects with a label"))
        else:
            yield name(mapping(value).get("user")) or annotator, mark


def _mark(value: Any) -> Mark | None:
    """Return a label of the document, or of the words at two offsets; None for what is neither."""
    if isinstance(value, list) and len(value) == 3:
        label, found = name(value[2]), offsets(value[0], value[1])
        return Mark(label, (found,)) if label and found else None
    if isinstance(value, dict):
        label = name(value.get("label"))
        if label and "start_offset" not in value and "end_offset" not in value:
            return Mark(label)
        found = offsets(value.get("start_offset"), value.get("end_offset"))
        return Mark(label, (found,)) if label and found else None
    label = name(value)
    return Mark(label) if label else None
