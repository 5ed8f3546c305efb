"""UIMA CAS XMI, as INCEpTION and WebAnno export it, through dkpro-cassis. It counts code points."""

import warnings
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

from psy_agents_noaug.errors import DataError
from psy_agents_noaug.importers.documents import (
    Document,
    Mark,
    Reading,
    Review,
    marks_of_features,
)
from psy_agents_noaug.importers.sources import SourceFile, refuse_entities
from psy_agents_noaug.importers.values import name

_NAMED_ENTITY = "de.tudarmstadt.ukp.dkpro.core.api.ner.type.NamedEntity"
# Tokens, sentences, lemmas and the like, which say nothing of criteria.
_LINGUISTIC = ("uima.", "de.tudarmstadt.ukp.dkpro.", "org.dkpro.", "de.tudarmstadt.ukp.clarin.")
_METADATA = "de.tudarmstadt.ukp.dkpro.core.api.metadata.type.DocumentMetaData"
_OWN_FEATURES = ("begin", "end", "sofa", "xmiID", "literal", "order")


def read_xmi(
    file: SourceFile, type_system: SourceFile, annotator: str | None, reading: Reading
) -> Document:
    """Read a document.

    Args:
        file: the CAS.
        type_system: the types in it.
        annotator: None: not known; the user whose name the file and its metadata have.
        reading: gets what is left.

    Raises:
        DataError: the file or its type system is malformed, or may be made to do harm.
    """
    from cassis import load_cas_from_xmi, load_typesystem

    for source in (file, type_system):
        refuse_entities(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of types that are described twice
            types = load_typesystem(BytesIO(type_system.content))
            warnings.simplefilter("error")  # offsets that are in no character are only warned of
            cas = load_cas_from_xmi(BytesIO(file.content), typesystem=types)
        text = cas.sofa_string
        structures = list(cas.select_all_fs())
    except Exception as error:  # noqa: BLE001  (what it raises at malformed files is not documented)
        raise DataError(f"malformed XMI or type system ({type(error).__name__})") from None
    if not isinstance(text, str):
        raise DataError("the CAS holds no text")
    place = str(file.name)
    marks = tuple(mark for s in structures for mark in _marks(s, place, reading))
    title, own = _metadata(structures)
    if annotator is None and title is not None and own == file.name.stem:
        annotator = own if own not in (title, PurePosixPath(title).stem) else None
    return Document(place, text, (Review(annotator, marks),), document_id=title or own)


def _metadata(structures: Iterable[Any]) -> tuple[str | None, str | None]:
    """Return what a CAS says of its document: its title, and an id, for which INCEpTION has the user."""
    for structure in structures:
        if structure.type.name == _METADATA:
            keys = ("documentTitle", "documentId")
            title, own = (name(getattr(structure, key, None)) for key in keys)
            return title, own
    return None, None


def _marks(structure: Any, place: str, reading: Reading) -> Iterator[Mark]:
    """Yield the marks of an annotation: its text features are labels, true, false and numbers not.

    Raises:
        DataError: a feature is not of the type that it is said to have.
    """
    layer: str = structure.type.name
    if layer.startswith(_LINGUISTIC) and layer != _NAMED_ENTITY:
        return
    short = layer.rpartition(".")[2]
    labels: list[tuple[str, str]] = []
    properties: list[tuple[str, str]] = []
    for feature in structure.type.all_features:
        value = getattr(structure, feature.name, None)
        if feature.name in _OWN_FEATURES or value is None:
            continue
        kind = feature.rangeType.name
        if hasattr(value, "type") and hasattr(value, "begin"):
            reading.left.add("relations", place)
            return
        if kind == "uima.cas.Boolean" or isinstance(value, int | float):
            properties.append((feature.name, str(value).lower()))
        elif isinstance(value, str):
            labels.append((feature.name, value))
        elif kind == "uima.cas.StringArray":
            elements = getattr(value, "elements", None)
            if not hasattr(value, "elements") or not isinstance(elements, list | tuple | None):
                raise DataError(f"{short}.{feature.name} must be a list of text")
            given = [element for element in elements or () if isinstance(element, str)]
            labels += [(feature.name, element) for element in given]
        else:
            reading.left.add(f"values of the feature {short}.{feature.name}", place)
    begin, end = getattr(structure, "begin", None), getattr(structure, "end", None)
    ranges = () if begin is None or end is None else ((int(begin), int(end)),)
    if ranges and begin == end:
        reading.left.add("spans without a character", place)
        return
    has_features = any(f.name not in _OWN_FEATURES for f in structure.type.all_features)
    if has_features and not (ranges or labels or properties):
        reading.left.add(f"annotations of a document without a value ({short})", place)
        return
    yield from marks_of_features(short, ranges, labels, properties)
