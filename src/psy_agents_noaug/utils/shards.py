"""Which share of the work a process does, as `3/64` says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

ItemT = TypeVar("ItemT")
_SHARD = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


@dataclass(frozen=True)
class Shard:
    """Every `count`-th item, from the `number`-th on.

    Args:
        number: from 1 to `count`.
        count: of the shards that are all items together.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read `3/64`.

        Raises:
            ValueError: it is no shard; the message begins with the rule.
        """
        found = _SHARD.fullmatch(text)
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise ValueError(
                "must be NUMBER/COUNT with a NUMBER from 1 to COUNT, such as 1/64 for the first of 64 "
                f"shards and 64/64 for the last, but is {text!r} instead"
            )
        return cls(number, count)

    def __str__(self) -> str:
        return f"shard {self.number}/{self.count}"

    def of(self, items: Sequence[ItemT]) -> Sequence[ItemT]:
        """Return the items of this shard, in their order."""
        return items[self.number - 1 :: self.count]
