"""INCEpTION and WebAnno: UIMA CAS XMI with its TypeSystem.xml, WebAnno TSV 3.x, and whole projects.

In a project export (`annotation/DOCUMENT/USER.zip`) the path names document and annotator.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath

from psy_agents_noaug.data.validation import Fault
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.importers.documents import Document, Reading
from psy_agents_noaug.importers.settings import ReadSettings
from psy_agents_noaug.importers.sources import SourceFile
from psy_agents_noaug.importers.webanno_tsv import read_tsv
from psy_agents_noaug.importers.xmi import read_xmi
from psy_agents_noaug.utils.extras import require

SUFFIXES = (".xmi", ".tsv", ".xml")
_TYPE_SYSTEM = "typesystem.xml"
_FOLDERS = ("annotation", "curation")


def read(files: Sequence[SourceFile], settings: ReadSettings) -> Reading:
    """Read documents, each of one annotator."""
    reading = Reading()
    systems = {f.name.parent: f for f in files if f.name.name.lower() == _TYPE_SYSTEM}
    if any(file.name.suffix.lower() == ".xmi" for file in files):
        require("cassis", extra="import", purpose="Reading XMI")
    for file in files:
        suffix = file.name.suffix.lower()
        document_id, annotator = _names(file.name)
        if suffix == ".xml":
            continue
        if annotator == "INITIAL_CAS":
            reading.left.add("documents before annotation (INITIAL_CAS)", str(file.name))
            continue
        try:
            document = (
                read_tsv(file, annotator, reading)
                if suffix == ".tsv"
                else read_xmi(file, _type_system(file.name, systems), annotator, reading)
            )
        except DataError as error:
            reading.faults.append(Fault(str(file.name), "cannot be read", str(error)))
            continue
        if document is not None:
            reading.documents.append(_with_id(document, document_id))
    return reading


def _names(path: PurePosixPath) -> tuple[str, str | None]:
    """Return what a path says of the document and the annotator."""
    parts = path.parts
    for folder in _FOLDERS:
        if folder in parts[:-2]:
            return parts[parts.index(folder) + 1], path.stem
    return path.stem, None


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


def _with_id(document: Document, document_id: str) -> Document:
    return Document(
        document.place,
        document.text,
        document.reviews,
        document_id=document_id,
        unit=document.unit,
    )
