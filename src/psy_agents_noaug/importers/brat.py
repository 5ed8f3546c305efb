"""brat: pairs of a .txt and an .ann file, a folder for each annotator or none.

The format is that of https://brat.nlplab.org/standoff.html. Offsets are code points.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from psy_agents_noaug.data.validation import Fault, quote_identifier
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.importers.documents import Document, Mark, Reading, Review
from psy_agents_noaug.importers.settings import ReadSettings
from psy_agents_noaug.importers.sources import SourceFile
from psy_agents_noaug.importers.values import offsets

SUFFIXES = (".txt", ".ann")
_LEFT = {"R": "relations", "*": "relations", "E": "events", "N": "normalizations"}


def read(files: Sequence[SourceFile], settings: ReadSettings) -> Reading:
    """Read a folder or an archive; of a lone file the other one of the pair is missing."""
    reading = Reading()
    texts = {f.name.with_suffix(""): f for f in files if f.name.suffix.lower() == ".txt"}
    annotated = [f for f in files if f.name.suffix.lower() == ".ann"]
    has_annotators = len({f.name.parent for f in annotated}) > 1
    used = set()
    for file in annotated:
        stem = file.name.with_suffix("")
        source = texts.get(stem) or texts.get(PurePosixPath(stem.name))
        if source is None:
            rule = "must have its text beside it, in a .txt file of the same name"
            reading.faults.append(Fault(str(file.name), rule))
            continue
        used.add(source.name)
        try:
            text, lines = source.text(), file.text()
        except DataError as error:
            reading.faults.append(Fault(str(file.name), "cannot be read", str(error)))
            continue
        marks = _Lines(str(file.name), reading).read(lines)
        annotator = stem.parent.name if has_annotators else None
        review = Review(annotator or None, marks)
        reading.documents.append(
            Document(str(file.name), text, (review,), document_id=_identifier(stem, has_annotators))
        )
    for source in texts.values():
        if source.name not in used:
            reading.left.add("documents without an .ann file", str(source.name))
    return reading


def _identifier(stem: PurePosixPath, has_annotators: bool) -> str:
    return stem.name if has_annotators else str(stem)


@dataclass
class _Lines:
    """The lines of an .ann file.

    Args:
        place: the file.
        reading: gets what is left and what is wrong.
    """

    place: str
    reading: Reading
    _spans: dict[str, Mark] = field(default_factory=dict)
    _attributes: list[tuple[str, str]] = field(default_factory=list)
    _notes: list[tuple[str, str]] = field(default_factory=list)

    def read(self, text: str) -> tuple[Mark, ...]:
        """Return the spans with their attributes and notes."""
        for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
            if line.strip():
                self._read_line(f"{self.place}, line {number}", line)
        for target, attribute in self._attributes:
            if target in self._spans:
                mark = self._spans[target]
                self._spans[target] = replace(mark, attributes=(*mark.attributes, attribute))
            else:
                self.reading.left.add(f"attribute {attribute} of no span", self.place)
        for target, note in self._notes:
            if target in self._spans:
                mark = self._spans[target]
                notes = f"{mark.note}\n{note}" if mark.note else note
                self._spans[target] = replace(mark, note=notes)
            else:
                self.reading.left.add("notes on no span", self.place)
        return tuple(self._spans.values())

    def _read_line(self, place: str, line: str) -> None:
        key, _, rest = line.partition("\t")
        kind = key[:1]
        if kind == "T":
            self._read_span(place, key, rest)
        elif kind in ("A", "M"):
            words = rest.split()
            if len(words) < 2:
                self._fault(place, "must be an attribute: A1 TAB name, target, value")
            else:
                value = f"={words[2]}" if len(words) > 2 else ""
                self._attributes.append((words[1], f"{words[0]}{value}"))
        elif kind == "#":
            about, _, note = rest.partition("\t")
            target = about.split()[-1] if about.split() else ""
            self._notes.append((target, note.strip()))
        elif kind in _LEFT:
            self.reading.left.add(_LEFT[kind], place)
        else:
            self._fault(place, "must begin with T, R, E, A, M, N, # or *")

    def _read_span(self, place: str, key: str, rest: str) -> None:
        head, separator, quote = rest.partition("\t")
        label, _, numbers = head.partition(" ")
        ranges = [offsets(*pair) for pair in map(_pair, numbers.split(";"))]
        found = tuple(pair for pair in ranges if pair is not None)
        if not separator or not label or len(found) < len(ranges):
            self._fault(place, "must be a span: T1 TAB label start end[;start end] TAB words")
        elif key in self._spans:
            self._fault(place, "must have an id of its own", quote_identifier(key))
        else:
            self._spans[key] = Mark(label, found, quote)

    def _fault(self, place: str, rule: str, detail: str = "") -> None:
        self.reading.faults.append(Fault(place, rule, detail))


def _pair(text: str) -> tuple[str | None, str | None]:
    found = re.fullmatch(r"\s*([0-9]+)\s+([0-9]+)\s*", text)
    return (found[1], found[2]) if found else (None, None)
