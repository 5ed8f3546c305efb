"""brat: pairs of a .txt and an .ann file, a folder for each annotator or none.

The format is that of https://brat.nlplab.org/standoff.html. Offsets are code points.
"""

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from psy_agents_noaug.data.validation import Fault, quote_identifier
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.importers.documents import Document, Mark, Reading, Review
from psy_agents_noaug.importers.settings import ReadSettings
from psy_agents_noaug.importers.sources import SourceFile
from psy_agents_noaug.importers.values import offsets

SUFFIXES = (".txt", ".ann")
_LEFT = {"R": "relations", "*": "relations", "N": "normalizations"}


@dataclass(frozen=True)
class _Pair:
    """An .ann file and its text.

    Args:
        file: the .ann file.
        source: the .txt file.
        path: of the .ann file below the folder of all files, without its suffix.
        home: the same of the .txt file.
    """

    file: SourceFile
    source: SourceFile
    path: PurePosixPath
    home: PurePosixPath

    def names(self, level: int | None) -> tuple[str | None, str]:
        """Return annotator and document, where the folders of a level are the annotators."""
        folders = self.path.parts[:-1]
        annotator = folders[level] if level is not None and level < len(folders) else None
        if self.home != self.path:
            return annotator, str(self.home)
        return annotator, str(self.path if annotator is None else _without(self.path, level))


def read(files: Sequence[SourceFile], settings: ReadSettings) -> Reading:
    """Read a folder or an archive; of a lone file the other one of the pair is missing."""
    reading = Reading()
    pairs, alone = _pairs(files, reading)
    level = _annotator_level(pairs)
    for path in alone:
        reading.unread |= _documents_of(path, pairs, level)
    if level is None and any(len(pair.path.parts) > 1 for pair in pairs):
        reading.notes.append(
            "The folders are parts of the post_ids, not annotators: no text is in two of them."
        )
    first: dict[tuple[str | None, str], SourceFile] = {}
    for pair in pairs:
        place = str(pair.file.name)
        annotator, document = names = pair.names(level)
        if (other := first.setdefault(names, pair.file)) is not pair.file:
            rule = "must be the only .ann file of its document and annotator"
            reading.faults += [Fault(str(f.name), rule) for f in (other, pair.file)]
            continue
        try:
            text, lines = pair.source.text(), pair.file.text()
        except DataError as error:
            reading.faults.append(Fault(place, "cannot be read", str(error)))
            reading.unread |= {document, *_documents_of(pair.path, pairs, level)}
            continue
        review = Review(annotator, tuple(_Lines(place, reading).read(lines)))
        reading.documents.append(Document(place, text, (review,), document_id=document))
    return reading


def _documents_of(path: PurePosixPath, pairs: Sequence[_Pair], level: int | None) -> set[str]:
    """Return the documents of which an .ann file may be that cannot be read.

    Without a text it does not show whether its folders are annotators'. If no other file does, it may be
    of each document with its name.
    """
    if level is None:
        return {pair.names(level)[1] for pair in pairs if pair.path.name == path.name}
    return {str(_without(path, level) if level < len(path.parts) - 1 else path)}


def _pairs(
    files: Sequence[SourceFile], reading: Reading
) -> tuple[list[_Pair], list[PurePosixPath]]:
    """Return the pairs, and the paths of .ann files without a text.

    The text is beside the .ann file, or above the annotators' folders.
    """
    root = posixpath.commonpath([str(file.name.parent) for file in files])
    paths = {file.name: file.name.relative_to(root).with_suffix("") for file in files}
    texts = {paths[f.name]: f for f in files if f.name.suffix.lower() == ".txt"}
    pairs, alone = [], []
    for file in files:
        if file.name.suffix.lower() != ".ann":
            continue
        path = paths[file.name]
        homes = (path, _without(path, 0), PurePosixPath(path.name))
        home = next((home for home in homes if home in texts), None)
        if home is None:
            rule = "must have its text beside it, in a .txt file of the same name"
            reading.faults.append(Fault(str(file.name), rule))
            alone.append(path)
        else:
            pairs.append(_Pair(file, texts[home], path, home))
    used = {pair.home for pair in pairs}
    for home, source in texts.items():
        if home not in used:
            reading.left.add("documents without an .ann file", str(source.name))
    return pairs, alone


def _annotator_level(pairs: Sequence[_Pair]) -> int | None:
    """Return which folders of the paths are annotators': those with the same text; None: none are."""
    if any(pair.home != pair.path for pair in pairs):
        return 0
    for level in range(max((len(pair.path.parts) for pair in pairs), default=0) - 1):
        seen: dict[tuple[PurePosixPath, bytes], str] = {}
        for pair in pairs:
            if level < len(pair.path.parts) - 1:
                folder = pair.path.parts[level]
                document = _without(pair.path, level), pair.source.content
                if seen.setdefault(document, folder) != folder:
                    return level
    return None


def _without(path: PurePosixPath, level: int | None) -> PurePosixPath:
    """Return a path without the folder of a level."""
    return PurePosixPath(*(p for i, p in enumerate(path.parts) if i != level))


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
    _triggers: dict[str, str] = field(default_factory=dict)  # of events
    _attributes: list[tuple[str, str]] = field(default_factory=list)
    _notes: list[tuple[str, str]] = field(default_factory=list)

    def read(self, text: str) -> Iterator[Mark]:
        """Yield the spans with their attributes and notes, one for each event of a trigger."""
        for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
            if line.strip():
                self._read_line(f"{self.place}, line {number}", line)
        for key, mark in self._spans.items():
            events = [event for event, trigger in self._triggers.items() if trigger == key]
            for event in events or [key]:
                attributes = tuple(a for about, a in self._attributes if about in (key, event))
                notes = [note for about, note in self._notes if about in (key, event)]
                yield replace(mark, attributes=attributes, note="\n".join(notes) or None)
        known = {
            *self._spans,
            *(e for e, trigger in self._triggers.items() if trigger in self._spans),
        }
        for about, attribute in self._attributes:
            self.reading.left.add(
                f"attribute {attribute} of no span", self.place, about not in known
            )
        for about, _ in self._notes:
            self.reading.left.add("notes on no span", self.place, about not in known)

    def _read_line(self, place: str, line: str) -> None:
        key, _, rest = line.partition("\t")
        kind = key[:1]
        if kind == "T":
            self._read_span(place, key, rest)
        elif kind == "E":
            trigger = rest.partition(" ")[0].rpartition(":")[2].strip()
            if not trigger:
                self._fault(place, "must be an event: E1 TAB label:trigger")
            elif self._triggers.setdefault(key, trigger) != trigger:
                self._fault(place, "must have an id of its own", quote_identifier(key))
            self.reading.left.add(
                "events (their attributes and notes are those of the trigger)", place
            )
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
