"""What a reader must know besides the files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from psy_agents_noaug.importers.values import name

_TEXT_FIELDS = ("text", "post_text", "body", "content", "comment", "sentence", "data")


@dataclass(frozen=True)
class ReadSettings:
    """Settings of a reader.

    Args:
        text: field of the text; None: the one with a usual name, or the only one with a text.
        id: field of the identifier; None: `post_id` where it is there, else the tool's own.
        group: field of the author; None: `group_id` where it is there.
        fields: columns of a table that hold labels; None: those whose values are labels.
        with_predictions: whether a model's predictions are read as those of an annotator.
        ground_truth_only: whether only annotations that are marked as ground truth are read.
        is_label: whether a label is mapped to a criterion, or known to be left out.
    """

    text: str | None = None
    id: str | None = None
    group: str | None = None
    fields: tuple[str, ...] | None = None
    with_predictions: bool = False
    ground_truth_only: bool = False
    is_label: Callable[[str], bool] = lambda label: False

    def text_of(self, data: Mapping[str, Any]) -> str | None:
        """Return the text of a document, None if it is not known which field holds it."""
        if self.text is not None:
            value = data.get(self.text)
            return value if isinstance(value, str) else None
        for field in _TEXT_FIELDS:
            if isinstance(data.get(field), str):
                return str(data[field])
        others = {"id", "post_id", "group_id", self.id, self.group}
        texts = [v for k, v in data.items() if isinstance(v, str) and k not in others]
        return texts[0] if len(texts) == 1 else None

    def id_of(self, data: Mapping[str, Any], own: Any = None) -> str | None:
        """Return the identifier of a document: of its data, or its `own` of the tool."""
        if self.id is not None:
            return name(data.get(self.id))
        return name(data.get("post_id")) or name(own)

    def group_of(self, data: Mapping[str, Any]) -> str | None:
        """Return the author of a document."""
        return name(data.get(self.group or "group_id"))
