"""WebAnno TSV 3.x: a line for each token, with columns for the features of each layer.

The format is that of the INCEpTION user guide, appendix "WebAnno TSV". Offsets are UTF-16 units. The
file holds sentences and tokens; what stood between two sentences is lost, and becomes spaces.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from psy_agents_noaug.data.offsets import OffsetUnit
from psy_agents_noaug.data.validation import Fault
from psy_agents_noaug.importers.documents import (
    Document,
    Mark,
    Reading,
    Review,
    marks_of_features,
)
from psy_agents_noaug.importers.sources import SourceFile
from psy_agents_noaug.importers.values import offsets

_FORMAT = re.compile(r"#FORMAT=WebAnno TSV 3(\.\d+)?\s*")
_TOKEN = re.compile(r"\d+-\d+(\.\d+)?")
_EMPTY = re.compile(r"(\d+)-\1")  # a place between two characters, which may have annotations
_NUMBERED = re.compile(r"(.*?)(?<!\\)\[(\d+)\]", re.DOTALL)
# Up to 3.1 as in Java, with \u00e4; since then a backslash is always doubled.
_ESCAPED = re.compile(r"\\(->|u[0-9a-fA-F]{4}|.)", re.DOTALL)
_CONTROL = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "b": "\b"}
_BOOLEAN = ("true", "false")


@dataclass(frozen=True)
class _Layer:
    name: str
    features: tuple[str, ...]
    is_span: bool

    @property
    def width(self) -> int:
        return max(1, len(self.features))


@dataclass
class _Token:
    start: int
    end: int
    text: str
    cells: Sequence[str]


@dataclass
class _Sentence:
    text: str
    tokens: list[_Token] = field(default_factory=list)


@dataclass
class _Span:
    start: int
    end: int
    values: list[str | None]


def read_tsv(file: SourceFile, annotator: str | None, reading: Reading) -> Document | None:
    """Read a document; None if it has faults, which are added to the reading.

    Raises:
        DataError: the file is not in UTF-8.
    """
    place = str(file.name)
    lines = file.text().split("\n")
    if not _FORMAT.fullmatch(lines[0]):
        rule = "must begin with #FORMAT=WebAnno TSV 3.x"
        reading.faults.append(Fault(f"{place}, line 1", rule, "export it as XMI or TSV 3"))
        return None
    layers = [layer for line in lines if (layer := _layer(line)) is not None]
    faults: list[Fault] = []
    sentences = _sentences(place, lines, layers, faults, reading)
    built = None if faults else _text(sentences)
    if built is None:
        rule = "must have tokens that are in their sentences, where their offsets say"
        reading.faults += faults or [Fault(place, rule)]
        return None
    text, unit = built
    marks = _marks(place, sentences, layers, reading)
    return Document(place, text, (Review(annotator, tuple(marks)),), unit=unit)


def _layer(line: str) -> _Layer | None:
    for prefix, is_span in (("#T_SP=", True), ("#T_CH=", False), ("#T_RL=", False)):
        if line.startswith(prefix):
            name, *features = line.removeprefix(prefix).strip().split("|")
            return _Layer(name, tuple(f for f in features if f), is_span)
    return None


def _sentences(
    place: str,
    lines: Sequence[str],
    layers: Sequence[_Layer],
    faults: list[Fault],
    reading: Reading,
) -> list[_Sentence]:
    width = sum(layer.width for layer in layers)
    sentences: list[_Sentence] = []
    is_open = False
    for number, raw in enumerate(lines, start=1):
        line = raw.removesuffix("\r")
        if line.startswith("#Text="):
            text = _unescaped(line.removeprefix("#Text="))
            if is_open:  # a sentence of several lines
                sentences[-1].text += f"\n{text}"
            else:
                sentences.append(_Sentence(text))
            is_open = True
        elif _TOKEN.match(line):
            is_open = False
            cells = line.split("\t")
            if len(cells) > 1 and _EMPTY.fullmatch(cells[1]):
                is_annotated = any(cell not in ("", "_") for cell in cells[3:])
                reading.left.add("spans without a character", place, is_annotated)
                continue
            token = _token(cells, width, sentences[-1].text) if sentences else None
            if token is None:
                rule = f"must be a token below #Text=: id, start-end, word, and {width} cells"
                faults.append(Fault(f"{place}, line {number}", rule, f"{len(cells) - 3} cells"))
            else:
                sentences[-1].tokens.append(token)
        elif line and not line.startswith("#"):
            faults.append(Fault(f"{place}, line {number}", "must be a token or begin with #"))
    return sentences


def _token(cells: Sequence[str], width: int, sentence: str) -> _Token | None:
    """Return a token; its word is written as it is, though by other programs also escaped."""
    if len(cells) < 3:
        return None
    start, _, end = cells[1].partition("-")
    found = offsets(start, end)
    values = list(cells[3:])
    if len(values) == width + 1 and not values[-1]:
        values.pop()
    if found is None or len(values) != width:
        return None
    word = cells[2] if cells[2] in sentence else _unescaped(cells[2])
    return _Token(*found, word, values)


def _text(sentences: Sequence[_Sentence]) -> tuple[str, OffsetUnit] | None:
    """Put a text together, in the first unit in which each token is where its offsets say."""
    units: tuple[OffsetUnit, ...] = ("utf16", "code_points")
    for unit in units:
        width = 2 if unit == "utf16" else 4
        encoding = "utf-16-le" if unit == "utf16" else "utf-32-le"
        content = bytearray()
        blank = " ".encode(encoding)
        for sentence in sentences:
            if not sentence.tokens:
                continue
            first = sentence.tokens[0]
            before = sentence.text.partition(first.text)[0].encode(encoding, "surrogatepass")
            gap = first.start * width - len(before) - len(content)
            content += blank * (gap // width)
            content += sentence.text.encode(encoding, "surrogatepass")
            if gap < 0:
                break
        else:
            raw = bytes(content)
            if all(
                raw[t.start * width : t.end * width] == t.text.encode(encoding, "surrogatepass")
                for sentence in sentences
                for t in sentence.tokens
            ):
                return raw.decode(encoding, "surrogatepass"), unit
    return None


def _marks(
    place: str, sentences: Sequence[_Sentence], layers: Sequence[_Layer], reading: Reading
) -> Iterator[Mark]:
    first = 0
    for layer in layers:
        columns = slice(first, first + layer.width)
        first += layer.width
        short = layer.name.rpartition(".")[2]
        tokens = [token for sentence in sentences for token in sentence.tokens]
        if not layer.is_span:
            reading.left.add("relations", place, sum(t.cells[columns][0] != "_" for t in tokens))
            continue
        for span in _spans(tokens, columns):
            given = [
                (feature, value)
                for feature, value in zip(layer.features, span.values, strict=False)
                if value is not None
            ]
            labels = [(feature, value) for feature, value in given if value not in _BOOLEAN]
            properties = [(feature, value) for feature, value in given if value in _BOOLEAN]
            yield from marks_of_features(short, ((span.start, span.end),), labels, properties)


def _spans(tokens: Sequence[_Token], columns: slice) -> list[_Span]:
    """Return the spans of a layer: of one token, or of the tokens that have one number."""
    numbered: dict[str, _Span] = {}
    found: list[_Span] = []
    for token in tokens:
        stacks = [_stack(cell) for cell in token.cells[columns]]
        for position in range(max(map(len, stacks), default=0)):
            items = [stack[position] if position < len(stack) else (None, None) for stack in stacks]
            number = next((number for _, number in items if number is not None), None)
            values = [value for value, _ in items]
            if number is not None and number in numbered:
                numbered[number].end = max(numbered[number].end, token.end)
                continue
            span = _Span(token.start, token.end, values)
            found.append(span)
            if number is not None:
                numbered[number] = span
    return found


def _stack(cell: str) -> list[tuple[str | None, str | None]]:
    """Return the value and the number of each annotation in a cell."""
    if cell == "_":
        return []
    found = []
    for part in _split(cell):
        match = _NUMBERED.fullmatch(part)
        value, number = (match[1], match[2]) if match else (part, None)
        found.append((None if value in ("*", "_", "") else _unescaped(value), number))
    return found


def _split(cell: str) -> list[str]:
    """Split a cell at each bar that is not escaped."""
    parts, current, position = [], "", 0
    while position < len(cell):
        if cell[position] == "\\":
            current += cell[position : position + 2]
            position += 2
        elif cell[position] == "|":
            parts.append(current)
            current, position = "", position + 1
        else:
            current += cell[position]
            position += 1
    return [*parts, current]


def _unescaped(text: str) -> str:
    found = _ESCAPED.sub(lambda escape: _character(escape[1]), text)
    # Java escapes a character outside of the basic plane as two.
    return found.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _character(escape: str) -> str:
    if len(escape) == 5:
        return chr(int(escape[1:], 16))
    return _CONTROL.get(escape, escape)
