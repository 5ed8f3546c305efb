"""The labels that annotations may have: the values of the column `status`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_BINARY = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), 1),
    **dict.fromkeys(("0", "0.0", "false", "no"), 0),
}
# Other spellings ("1e0", "+1", digits of other scripts) are mistakes in a table.
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]*)?")


@dataclass(frozen=True, slots=True)
class LabelScale:
    """The labels that a task reads. 0 is "explicitly not met"; labels above 0 are positive.

    Args:
        kind: binary (0 or 1), ordinal (whole numbers), or real (any number).
        high: the largest label.
    """

    kind: Literal["binary", "ordinal", "real"]
    high: float

    @property
    def rule(self) -> str:
        """The rule that a cell must follow, for messages."""
        if self.kind == "binary":
            return "must be 0 or 1"
        number = "a whole number" if self.kind == "ordinal" else "a number"
        return f"must be {number} from 0 to {self.high:g}"

    @property
    def merged(self) -> Literal["highest", "mean"]:
        """Which label counts where rows of a pair differ, for messages."""
        return "mean" if self.kind == "real" else "highest"

    def parse(self, cell: str) -> float | None:
        """Return the label in a cell, an int unless the scale is real; None where it breaks the rule."""
        cell = cell.strip()
        if self.kind == "binary":
            return _BINARY.get(cell.casefold())
        if not _NUMBER.fullmatch(cell) or float(cell) > self.high:
            return None
        number = float(cell)
        if self.kind == "real":
            return number
        return int(number) if number.is_integer() else None

    def merge(self, labels: Sequence[float]) -> float:
        """Return the label of a pair with several rows: the highest, or the mean of a real scale."""
        return sum(labels) / len(labels) if self.merged == "mean" else max(labels)


BINARY = LabelScale("binary", high=1)
