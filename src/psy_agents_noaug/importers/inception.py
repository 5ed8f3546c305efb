"""INCEpTION and WebAnno: UIMA CAS XMI with its TypeSystem.xml, WebAnno TSV 3.x, and whole projects.

In a project export (`annotation/DOCUMENT/USER.zip`) the path names document and annotator, else the
metadata of the CAS where it has them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from psy_agents_noaug.data.validation import Fault
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.importers.documents import Reading
from psy_agents_noaug.importers.settings import ReadSettings
from psy_agents_noaug.importers.sources import SourceFile
from psy_agents_noaug.importers.webanno_tsv import read_tsv
from psy_agents_noaug.importers.xmi import read_xmi
from psy_agents_noaug.utils.extras import require

SUFFIXES = (".xmi", ".tsv", ".xml")
_TYPE_SYSTEM = "typesystem.xml"


def read(files: Sequence[SourceFile], settings: ReadSettings) -> Reading:
    """Read documents, each of one annotator."""
    reading = Reading()
    systems = {f.name.parent: f for f in files if f.name.name.lower() == _TYPE_SYSTEM}
    if any(file.name.suffix.lower() == ".xmi" for file in files):
        require("cassis", extra="import", purpose="Reading XMI")
    projects = {root for file in files if (root := _project(file.name)) is not None}
    first: dict[tuple[str | None, str], str] = {}
    for file in files:
        suffix = file.name.suffix.lower()
        document_id, annotator = _names(file.name)
        if suffix == ".xml":
            continue
        if _folder_of(file.name.parts[:-1], ("source",)) in projects:
            reading.left.add("documents as they were before annotation (source)", str(file.name))
            continue
        if annotator == "INITIAL_CAS":
            reading.left.add("documents before annotation (INITIAL_CAS)", str(file.name))
            continue
        # Of XMI outside of a project only its content says which document it is.
        unread = document_id or (file.name.stem if suffix == ".tsv" else None)
        try:
            document = (
                read_tsv(file, annotator, reading)
                if suffix == ".tsv"
                else read_xmi(file, _type_system(file.name, systems), annotator, reading)
            )
        except DataError as error:
            reading.faults.append(Fault(str(file.name), "cannot be read", str(error)))
            document = None
        if document is None:
            reading.cannot_read(str(file.name), unread)
            continue
        document_id = document_id or document.document_id or file.name.stem
        names = document.reviews[0].annotator_id, document_id
        if (other := first.setdefault(names, document.place)) != document.place:
            rule = "must be the only file of its document and annotator"
            detail = "as in a project export: annotation/DOCUMENT/USER"
            reading.faults += [Fault(place, rule, detail) for place in (other, document.place)]
        reading.documents.append(replace(document, document_id=document_id))
    return reading


def _names(path: PurePosixPath) -> tuple[str | None, str | None]:
    """Return the document and the annotator that the path of a project export names."""
    root = _project(path)
    return (None, None) if root is None else (path.parts[len(root.parts) + 1], path.stem)


def _project(path: PurePosixPath) -> PurePosixPath | None:
    """Return the folder of the project export that a file is an annotator's of."""
    return _folder_of(path.parts[:-2], ("annotation", "curation"))


def _folder_of(parts: Sequence[str], names: Sequence[str]) -> PurePosixPath | None:
    """Return the folder in which the first part is that has one of the names."""
    index = next((i for i, part in enumerate(parts) if part in names), None)
    return None if index is None else PurePosixPath(*parts[:index])


def _type_system(name: PurePosixPath, systems: dict[PurePosixPath, SourceFile]) -> SourceFile:
    """Return the type system in the folder of a file, or in the nearest one above it."""
    for folder in name.parents:
        if folder in systems:
            return systems[folder]
    if len(systems) == 1:
        return next(iter(systems.values()))
    raise DataError(
        f"{name}: must come with its TypeSystem.xml. Export it as a zip, or give the folder of both."
    )
