"""The files of an export: one file, a folder, or a zip archive, which is never unpacked to disk."""

import lzma
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any
from xml.parsers import expat

from psy_agents_noaug.data.table_formats import (
    encoding_of,
    is_json_array,
    json_array,
    json_lines,
    not_in_encoding,
    parse_json,
    repeated_keys,
)
from psy_agents_noaug.data.validation import Fault, quote_columns
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.utils.files import megabytes

MAX_BYTES = 2 * 2**30  # of all files of an export
MAX_FILES = 200_000
_MAX_DEPTH = 2  # an archive of INCEpTION holds archives
# What a damaged archive in memory, one with a password (RuntimeError), with a file without a name
# (IndexError) and with an unknown compression raise.
_NO_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
    EOFError,
    IndexError,
    OSError,
    ValueError,
)
_SHARED = (".txt", ".xml")  # texts and type systems, which several annotators may have


@dataclass(frozen=True)
class SourceFile:
    """A file of an export.

    Args:
        name: its path in the folder or archive; of a lone file its name.
        content: of the file.
    """

    name: PurePosixPath
    content: bytes

    def text(self) -> str:
        """Return the text, without a byte order mark.

        Raises:
            DataError: it is not in the encoding that it seems to have.
        """
        encoding = encoding_of(self.content)
        try:
            return self.content.decode(encoding)
        except UnicodeDecodeError as error:
            line = self.content.count(b"\n", 0, error.start) + 1
            raise not_in_encoding(str(self.name), encoding, line) from None


class _Budget:
    """What may still be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes, self._files = MAX_BYTES, MAX_FILES

    def read(self, file: IO[bytes]) -> bytes:
        """Read a file to its end, unless that is more than may be read."""
        content = file.read(self._bytes + 1)
        self._bytes -= len(content)
        self._files -= 1
        if self._bytes < 0 or self._files < 0:
            raise DataError(
                f"{self._path}: an export may hold at most {MAX_FILES:,} files and "
                f"{megabytes(MAX_BYTES)} when unpacked. Export it in parts."
            )
        return content


def read_sources(path: Path, suffixes: Sequence[str]) -> list[SourceFile]:
    """Return the files of an export that have one of the suffixes, in the order of their names.

    Args:
        path: of a file, a folder or a zip archive. Archives in it are read too.
        suffixes: in lower case, with a dot.

    Raises:
        DataError: there is nothing there, no such file in it, or it cannot be read.
    """
    budget = _Budget(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder.")
    wanted = (*suffixes, ".zip")
    try:
        if path.is_dir():
            places = list(_files_in(path))
            _check_once(places, wanted)
            files = [
                found
                for place in places
                for found in _expanded(
                    PurePosixPath(place.relative_to(path)), place, budget, wanted
                )
            ]
        else:
            files = list(_expanded(PurePosixPath(path.name), path, budget, wanted))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if not files:
        raise DataError(f"{path}: there is no {', '.join(suffixes)} file in it.")
    return files


def _check_once(places: Sequence[Path], wanted: Sequence[str]) -> None:
    """Refuse a file of annotations that links lead to twice: it would be two annotators who agree.

    Raises:
        DataError: names both places of the first such file.
    """
    found: dict[Path, Path] = {}
    for place in places:
        suffix = place.suffix.lower()
        if suffix not in wanted or suffix in _SHARED:
            continue
        other = found.setdefault(place.resolve(), place)
        if other != place:
            raise DataError(f"{place}: is the same file as {other}. Remove one of the links.")


def _files_in(folder: Path, above: Sequence[Path] = ()) -> Iterator[Path]:
    """Yield the files of a folder and its folders, sorted, also behind links, but none that are hidden.

    Args:
        folder: to look into.
        above: the folders in which it is, to which a link may lead back.

    Raises:
        DataError: a link leads nowhere.
    """
    above = (*above, folder.resolve())
    for place in sorted(folder.iterdir()):
        if _is_hidden(PurePosixPath(place.name)):
            continue
        if place.is_dir():
            if place.resolve() not in above:
                yield from _files_in(place, above)
        elif place.is_file():
            yield place
        elif place.is_symlink():
            raise DataError(f"{place}: is a link to a file that is not there.")


def _expanded(
    name: PurePosixPath, place: Path, budget: _Budget, wanted: Sequence[str]
) -> Iterator[SourceFile]:
    if name.suffix.lower() in wanted:
        with place.open("rb") as file:
            content = budget.read(file)
        yield from _members(SourceFile(name, content), budget, wanted, depth=0)


def _members(
    file: SourceFile, budget: _Budget, wanted: Sequence[str], *, depth: int
) -> Iterator[SourceFile]:
    """Yield a file, or those of an archive under the archive's name without its suffix."""
    if file.name.suffix.lower() != ".zip":
        yield file
        return
    if depth == _MAX_DEPTH:
        raise DataError(f"{file.name}: is an archive in an archive in an archive.")
    try:
        with zipfile.ZipFile(BytesIO(file.content)) as archive:
            for member in sorted(archive.infolist(), key=lambda info: info.filename):
                name = _safe_name(member.filename)
                if member.is_dir() or name.suffix.lower() not in wanted or _is_hidden(name):
                    continue
                with archive.open(member) as opened:
                    content = budget.read(opened)
                inner = SourceFile(file.name.with_suffix("") / name, content)
                yield from _members(inner, budget, wanted, depth=depth + 1)
    except _NO_ARCHIVE as error:
        raise DataError(
            f"{file.name}: the archive cannot be read ({type(error).__name__})."
        ) from None


def _safe_name(name: str) -> PurePosixPath:
    """Return the name of a member without what leads out of the archive; nothing is written there."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return PurePosixPath(*(part for part in parts if part not in ("/", "..", ".")))


def _is_hidden(name: PurePosixPath) -> bool:
    """Whether a file is a trace of a desktop or an editor (__MACOSX, .DS_Store, .ipynb_checkpoints)."""
    return any(part.startswith((".", "__MACOSX")) for part in name.parts)


def json_values(
    files: Sequence[SourceFile], faults: list[Fault], *, with_names: bool = False
) -> list[tuple[str, Any]]:
    """Return the JSON values of files with their places: items of an array, one object, or a line each.

    Args:
        files: whose names are part of a place if there are several.
        faults: to which what is no JSON is added, and keys that an object has twice.
        with_names: whether the name of a lone file is part of a place too.
    """
    found = []
    for file in files:
        prefix = f"{file.name}, " if with_names or len(files) > 1 else ""
        own: list[Fault] = []
        try:
            values = _values(file, own)
        except DataError as error:
            faults.append(Fault(str(file.name), "cannot be read", str(error)))
            continue
        for place, value in values:
            if repeated := repeated_keys(value):
                own.append(Fault(place, "must have each key once", quote_columns(repeated)))
        found += [(f"{prefix}{place}", value) for place, value in values]
        faults += [Fault(f"{prefix}{f.place}", f.rule, f.detail) for f in own]
    return found


def _values(file: SourceFile, faults: list[Fault]) -> list[tuple[str, Any]]:
    text = file.text()
    is_lines = file.name.suffix.lower() == ".jsonl" and _has_a_list_first(text)
    if is_json_array(text) and not is_lines:
        return json_array(str(file.name), text)
    if not is_lines and "\n" in text.strip():
        try:
            return [("record 1", parse_json(text))]
        except (ValueError, RecursionError):
            pass  # then it is an object per line
    return json_lines(enumerate(text.split("\n"), start=1), faults)


def _has_a_list_first(text: str) -> bool:
    """Whether the first line is a list that is no array of objects, as spaCy 2 has examples."""
    try:
        first = parse_json(text.lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, list) and not all(isinstance(item, dict) for item in first)


def refuse_entities(file: SourceFile) -> None:
    """Check that XML has no document type, where entities could be declared that grow or read files.

    Raises:
        DataError: it has one, or is no XML.
    """

    def refuse(*_: object) -> None:
        raise DataError(f"{file.name}: XML with a document type (<!DOCTYPE ...>) is not read.")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(file.content, True)
    except expat.ExpatError as error:
        raise DataError(
            f"{file.name}, line {error.lineno}: must be XML ({expat.ErrorString(error.code)})."
        ) from None
    except (LookupError, ValueError):
        raise DataError(
            f"{file.name}: XML in the encoding that it declares is not read. Save it as UTF-8."
        ) from None
