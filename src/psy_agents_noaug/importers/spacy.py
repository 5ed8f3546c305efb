"""spaCy and Prodigy: JSONL, JSON, and the binary .spacy where spaCy is installed.

Spans are in `spans` (a list, or lists by key as `Doc.to_json` has them), `ents` or `entities`; labels of
the document in `cats`, or in `accept` or `label` of Prodigy. Offsets are code points.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from psy_agents_noaug.data.validation import Fault
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.importers.documents import Mark, Reading, Review
from psy_agents_noaug.importers.settings import ReadSettings
from psy_agents_noaug.importers.sources import SourceFile, json_values
from psy_agents_noaug.importers.values import items, mapping, name, offsets

SUFFIXES = (".jsonl", ".json", ".spacy")
_ANSWERS = {"accept": True, "reject": False}
# Views of Prodigy that show one suggested span to accept or reject; spans are marked in "ner_manual" and
# "spans_manual".
_YES_OR_NO_VIEWS = ("ner", "spans")


def read(files: Sequence[SourceFile], settings: ReadSettings) -> Reading:
    """Read exports."""
    reading = Reading()
    binary = [file for file in files if file.name.suffix.lower() == ".spacy"]
    values = json_values([file for file in files if file not in binary], reading.faults)
    for file in binary:
        values += _docs(file, reading.faults)
    for place, value in values:
        if isinstance(value, list) and len(value) == 2:  # spaCy 2: [text, {"entities": [...]}]
            value = {**mapping(value[1]), "text": value[0]}
        if isinstance(value, dict):
            _read_record(place, value, settings, reading)
        else:
            reading.faults.append(Fault(place, "must be a JSON object"))
    return reading


def _docs(file: SourceFile, faults: list[Fault]) -> list[tuple[str, Any]]:
    """Return the documents of a DocBin as `Doc.to_json` has them."""
    if find_spec("spacy") is None:
        raise ConfigError(
            f"Reading {file.name} needs spacy, which is not installed: pip install spacy; or write the "
            "documents as JSONL, with `Doc.to_json`."
        )
    import spacy
    from spacy.tokens import DocBin

    try:
        docs = list(DocBin().from_bytes(file.content).get_docs(spacy.blank("xx").vocab))
    except Exception as error:  # noqa: BLE001  (msgpack, zlib and spaCy raise what they like)
        faults.append(Fault(str(file.name), "must be a DocBin", type(error).__name__))
        return []
    values = []
    for number, doc in enumerate(docs, start=1):
        value = {
            "text": doc.text,
            "ents": [_span(span) for span in doc.ents],
            "spans": {key: [_span(span) for span in group] for key, group in doc.spans.items()},
            "cats": dict(doc.cats),
        }
        values.append((f"{file.name}, document {number}", value))
    return values


def _span(span: Any) -> dict[str, Any]:
    return {"start": str(span.start_char), "end": str(span.end_char), "label": span.label_}


def _read_record(
    place: str, record: Mapping[str, Any], settings: ReadSettings, reading: Reading
) -> None:
    document = settings.document_of(place, record, reading, without=("label", "answer"))
    if document is None:
        return
    for key in ("label", "answer"):
        if record.get(key) not in (None, "") and name(record[key]) is None:
            reading.faults.append(Fault(place, f"must have text as {key}"))
    answer = name(record.get("answer"))
    has_label = name(record.get("label")) is not None
    shows_one_span = not has_label and record.get("_view_id") in _YES_OR_NO_VIEWS
    reviews: tuple[Review, ...] = ()
    if answer is None or answer in _ANSWERS:
        is_accepted = answer != "reject"
        marks = tuple(_marks(place, record, is_accepted, reading))
        if is_accepted or marks:
            annotator = name(record.get("_annotator_id")) or name(record.get("_session_id"))
            is_finished = True if answer else None
            # Of an example with one label or one suggested span nothing else was asked.
            says_all = not (has_label or shows_one_span)
            reviews = (Review(annotator, marks, is_finished, says_all),)
        elif shows_one_span:
            # It says nothing of the document: often only the ends of the span are wrong.
            reading.left.add("suggested spans that the annotator rejected", place)
        else:
            reading.left.add("examples that the annotator rejected", place)
    else:
        reading.left.add("examples that the annotator ignored", place)
    reading.documents.append(replace(document, reviews=reviews))


def _marks(
    place: str, record: Mapping[str, Any], is_accepted: bool, reading: Reading
) -> Iterator[Mark]:
    """Yield the labels; of what was rejected only that of the example, as one that does not apply."""
    if (label := name(record.get("label"))) is not None:
        yield Mark(label, field="label", is_met=is_accepted)
        reason = "spans of examples with a label, which only highlight words"
        reading.left.add(reason, place, sum(len(items(group)) for _, group in _groups(record)))
    if not is_accepted:
        return
    if label is None:
        yield from _spans(place, record, reading)
    for accepted in items(record.get("accept")):
        if (chosen := name(accepted)) is None:
            reading.faults.append(Fault(place, "must have labels that are text in `accept`"))
        else:
            yield Mark(chosen, field="accept")
    categories = record.get("cats")
    if categories is not None and not isinstance(categories, dict):
        rule = 'must have an object of labels as `cats`, as {"LABEL": 1}'
        reading.faults.append(Fault(place, rule))
    for category, value in mapping(categories).items():
        met = {"0": False, "1": True, "0.0": False, "1.0": True}.get(str(value))
        if isinstance(value, bool):
            met = value
        if met is None:
            reading.faults.append(Fault(place, "must have 0 or 1 for each of `cats`"))
        else:
            yield Mark(category, field="cats", is_met=met)


def _groups(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the lists of spans, each with its field."""
    groups: list[tuple[str, Any]] = [(key, record.get(key)) for key in ("ents", "entities")]
    spans = record.get("spans")
    return groups + (list(spans.items()) if isinstance(spans, dict) else [("spans", spans)])


def _spans(place: str, record: Mapping[str, Any], reading: Reading) -> Iterator[Mark]:
    for field, group in _groups(record):
        for value in items(group):
            if isinstance(value, list):
                value = dict(zip(("start", "end", "label"), value, strict=False))
            span = mapping(value)
            start, end = (span.get(k, span.get(f"{k}_char")) for k in ("start", "end"))
            found, label = offsets(start, end), name(span.get("label"))
            if found is None or label is None:
                rule = "must have start, end and label of each span"
                reading.faults.append(Fault(place, rule))
            else:
                quote = span.get("text")
                yield Mark(label, (found,), quote if isinstance(quote, str) else None, field)
