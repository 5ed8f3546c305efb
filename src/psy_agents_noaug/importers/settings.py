"""What a reader must know besides the files."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from psy_agents_noaug.data.validation import Fault, quote_columns
from psy_agents_noaug.importers.documents import Document, Reading
from psy_agents_noaug.importers.values import items, mapping, name

_TEXT_FIELDS = ("text", "post_text", "body", "content", "comment", "sentence", "data")


@dataclass(frozen=True)
class ReadSettings:
    """Settings of a reader.

    Args:
        text: field of the text; None: the only one with a usual name, or else the only one with a text.
        id: field of the identifier; None: `post_id` where it is there, else the tool's own.
        group: field of the author; None: `group_id` where it is there.
        fields: columns of a table that hold labels; None: those whose values are labels.
        with_predictions: whether a model's predictions are read as those of an annotator.
        ground_truth_only: whether only annotations that are marked as ground truth are read.
        is_label: whether a label of a field is mapped to a criterion, or known to be left out.
    """

    text: str | None = None
    id: str | None = None
    group: str | None = None
    fields: tuple[str, ...] | None = None
    with_predictions: bool = False
    ground_truth_only: bool = False
    is_label: Callable[[str, str], bool] = lambda label, field: False

    def text_of(self, data: Mapping[str, Any]) -> str | None:
        """Return the text of a document, None if it is not known which field holds it."""
        if self.text is not None:
            value = data.get(self.text)
            return value if isinstance(value, str) else None
        others = {"id", "post_id", "group_id", self.id, self.group}
        texts = {k: v for k, v in data.items() if isinstance(v, str) and k not in others}
        usual = [field for field in _TEXT_FIELDS if field in texts]
        found = usual or list(texts)
        return texts[found[0]] if len(found) == 1 else None

    def document_of(
        self, place: str, record: Mapping[str, Any], reading: Reading, *, without: Collection[str]
    ) -> Document | None:
        """Return the document of a record without its reviews; None if it has no text, which is a fault.

        Args:
            place: of the record.
            record: its fields; those of `meta` are fields too.
            reading: whose faults grow, and where relations are counted.
            without: the fields that never are the text.
        """
        data = {**mapping(record.get("meta")), **record}
        text = self.text_of({key: value for key, value in data.items() if key not in without})
        if text is None:
            reading.faults.append(no_text(place, record))
            reading.cannot_read(place, self.id_of(data, data.get("id")))
            return None
        reading.left.add("relations", place, len(items(record.get("relations"))))
        own_id, group_id = self.id_of(data, data.get("id")), self.group_of(data)
        return Document(place, text, (), document_id=own_id, group_id=group_id)

    def id_of(self, data: Mapping[str, Any], own: Any = None) -> str | None:
        """Return the identifier of a document: of its data, or its `own` of the tool."""
        if self.id is not None:
            return name(data.get(self.id))
        return name(data.get("post_id")) or name(own)

    def group_of(self, data: Mapping[str, Any]) -> str | None:
        """Return the author of a document."""
        return name(data.get(self.group or "group_id"))


def no_text(place: str, fields: Mapping[str, Any]) -> Fault:
    """Return the fault of a document of which no field, or more than one, may be the text."""
    rule = "must have its text in the field that `text` names (text=FIELD)"
    return Fault(place, rule, f"the fields are {quote_columns(list(fields))}")
