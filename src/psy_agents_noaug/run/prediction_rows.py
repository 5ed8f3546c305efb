"""Files of predictions, as `psy-agents predict` writes them, are read back row by row."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psy_agents_noaug.data.posts_stream import SeenIdentifiers
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.table_formats import encoding_of, parse_json, repeated_keys
from psy_agents_noaug.data.tables import read_table
from psy_agents_noaug.data.validation import Fault, quote_columns, quote_identifier
from psy_agents_noaug.errors import DataError

SUFFIXES = (".jsonl", ".csv", ".parquet")
_CHUNK = 10_000  # rows that are in memory at once
_DECISIONS = {"0": False, "1": True, "0.0": False, "1.0": True, "False": False, "True": True}


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """A prediction.

    Args:
        place: in the file, for messages.
        post_id: of the post.
        criterion_id: of the criterion.
        sentence: that is judged; None: the post is judged as a whole.
        probability: that the criterion is met; None: the file does not say.
        decision: whether the criterion is met; None: the file does not say.
        evidence: spans with their scores; None: the file does not say.
        text: of the post, where the file has it.
    """

    place: str
    post_id: str
    criterion_id: str
    sentence: Span | None
    probability: float | None
    decision: bool | None
    evidence: tuple[tuple[Span, float | None], ...] | None
    text: str | None

    @property
    def document(self) -> str:
        """The id of what is judged: `post_id`, or of a sentence `post_id/start_char-end_char`."""
        if self.sentence is None:
            return self.post_id
        return f"{self.post_id}/{self.sentence.start_char}-{self.sentence.end_char}"


def read_predictions(path: Path, faults: list[Fault]) -> Iterator[PredictionRow]:
    """Yield the predictions of a file, JSONL unless its suffix is another of `SUFFIXES`.

    Blank lines and a byte order mark are skipped. Besides a chunk each takes 8 bytes of memory; a
    CSV is read whole.

    Args:
        path: of the file.
        faults: to which rows are added that are none, or about what an earlier row is about.

    Raises:
        DataError: the file cannot be read.
    """
    seen = SeenIdentifiers()
    found = _predictions(path, faults)
    is_empty = True
    while rows := list(islice(found, _CHUNK)):
        is_empty = False
        keys = [f"{row.criterion_id}\0{row.document}" for row in rows]
        own: set[str] = set()
        for row, key, is_repeated in zip(rows, keys, seen.add(keys), strict=True):
            if is_repeated or key in own:
                rule = "must be the only one of its criterion and post, or sentence"
                faults.append(Fault(row.place, rule, quote_identifier(row.document)))
            else:
                yield row
            own.add(key)
    if is_empty and not faults:
        faults.append(Fault("the file", "must have a row"))


def prediction_row(
    place: str, values: Mapping[str, Any], faults: list[Fault]
) -> PredictionRow | None:
    """Return the prediction of a row; None if it is none, whose faults are added.

    Args:
        place: of the row.
        values: by column, typed, or text as in CSV.
        faults: that grow.
    """
    post_id, criterion_id = (_identifier(values.get(key)) for key in ("post_id", "criterion_id"))
    if post_id is None or criterion_id is None:
        faults.append(Fault(place, "must have post_id and criterion_id"))
    read: dict[str, Any] = {}
    for name, (value_of, rule) in _COLUMNS.items():
        try:
            read[name] = value_of(values)
        except (AttributeError, TypeError, ValueError, OverflowError, RecursionError):
            faults.append(Fault(place, rule))
    if post_id is None or criterion_id is None or len(read) < len(_COLUMNS):
        return None
    text = values.get("text")
    read["text"] = text if isinstance(text, str) else None
    return PredictionRow(place, post_id, criterion_id, **read)


def _predictions(path: Path, faults: list[Fault]) -> Iterator[PredictionRow]:
    try:
        for place, values in _rows(path, faults):
            if (row := prediction_row(place, values, faults)) is not None:
                yield row
    except UnicodeDecodeError:
        raise DataError(f"{path} must be in UTF-8, but is not.") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"{path} cannot be read as predictions ({reason}).") from None


def _rows(path: Path, faults: list[Fault]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with path.open("rb") as content, pq.ParquetFile(content) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(_CHUNK))
            for number, row in enumerate(chain.from_iterable(batches), start=1):
                yield f"row {number}", row
    elif suffix == ".csv":
        records: list[dict[Any, Any]] = read_table(path).to_dict("records")
        for number, row in enumerate(records, start=1):
            yield f"row {number}", row
    else:
        yield from _json_rows(path, faults)


def _json_rows(path: Path, faults: list[Fault]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open("rb") as head:
        encoding = encoding_of(head.read(4))
    with path.open(encoding=encoding) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = parse_json(line)
            except (ValueError, RecursionError):
                faults.append(Fault(f"line {number}", "must be JSON"))
                continue
            if not isinstance(value, dict):
                faults.append(Fault(f"line {number}", "must be a JSON object"))
            elif repeated := repeated_keys(value):
                rule = "must have each key once"
                faults.append(Fault(f"line {number}", rule, quote_columns(repeated)))
            else:
                yield f"line {number}", value


def _identifier(value: Any) -> str | None:
    is_one = isinstance(value, str | int) and not isinstance(value, bool)
    return (str(value) or None) if is_one else None


def _number(value: Any) -> float | None:
    """Return a number, None for None.

    Raises:
        TypeError, ValueError, OverflowError: it is no finite number.
    """
    if value is None:
        return None
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError
    return number


def _span(values: Mapping[str, Any]) -> Span | None:
    """Return the span of a sentence or a piece of evidence, None where it has no offsets."""
    start, end = (_number(values.get(key)) for key in ("start_char", "end_char"))
    if start is None and end is None:
        return None
    if start is None or end is None or not (start.is_integer() and end.is_integer()):
        raise ValueError
    if not 0 <= start < end:
        raise ValueError
    return Span(int(start), int(end))


def _decision(values: Mapping[str, Any]) -> bool | None:
    value = values.get("decision")
    if value is not None and str(value) not in _DECISIONS:
        raise ValueError
    return None if value is None else _DECISIONS[str(value)]


def _evidence(values: Mapping[str, Any]) -> tuple[tuple[Span, float | None], ...] | None:
    value = values.get("evidence")
    if value is None:
        return None
    found = []
    if isinstance(value, str):
        value = parse_json(value)
        if repeated_keys(value):
            raise ValueError
    for piece in value:
        if (span := _span(piece)) is None:
            raise ValueError
        found.append((span, _number(piece.get("score"))))
    return tuple(found)


# How a column is read, and the rule that a row breaks where it cannot be.
_COLUMNS: dict[str, tuple[Callable[[Mapping[str, Any]], Any], str]] = {
    "sentence": (_span, "must have start_char and end_char of a sentence, or neither"),
    "probability": (
        lambda values: _number(values.get("probability")),
        "must have a number as probability",
    ),
    "decision": (_decision, "must have 0 or 1 as decision"),
    "evidence": (
        _evidence,
        "must have evidence with start_char, end_char and, if wanted, a number as score",
    ),
}
