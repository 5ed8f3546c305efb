"""Files of rankings and of relevance in the format of TREC, which eRisk and DepreSym use.

A run has a line `topic Q0 document rank score tag` for each ranked document, qrels a line
`topic 0 document relevance` for each judged one. White space and % in ids are written as in URLs.
Files with commas and a header, as eRisk's qrels are, are read too.
"""

import csv
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

from psy_agents_noaug.data.validation import Fault, quote_identifier, raise_faults
from psy_agents_noaug.errors import DataError

Value = TypeVar("Value", float, int)
Topics = dict[str, dict[str, Value]]  # the score, or relevance, of each document of each topic
_HEADERS = ("rel", "relevance", "score")  # names of the column of values


def run_lines(topic: str, documents: Sequence[str], scores: Sequence[str], *, tag: str) -> str:
    """Return the lines of a topic of a run.

    Args:
        topic: its id.
        documents: ids, the first ranked first.
        scores: as they are written.
        tag: names the system.
    """
    pairs = zip(documents, scores, strict=True)
    return "".join(
        f"{_word(topic)} Q0 {_word(document)} {rank} {score} {_word(tag)}\n"
        for rank, (document, score) in enumerate(pairs, start=1)
    )


def qrels_lines(topic: str, relevance: Iterable[tuple[str, int]]) -> str:
    """Return the lines of a topic of qrels, of documents and their relevance."""
    return "".join(f"{_word(topic)} 0 {_word(document)} {value}\n" for document, value in relevance)


def read_run(path: Path) -> Topics[float]:
    """Read a run. Documents are ranked by their scores; the column of ranks is not read.

    Raises:
        DataError: with every fault of the file.
    """
    return _read(
        path, columns=6, at=4, parse=_score, what="a run: topic Q0 document rank score tag"
    )


def read_qrels(path: Path) -> Topics[int]:
    """Read qrels.

    Raises:
        DataError: with every fault of the file.
    """
    return _read(path, columns=4, at=3, parse=int, what="qrels: topic 0 document relevance")


def _read(
    path: Path, *, columns: int, at: int, parse: Callable[[str], Value], what: str
) -> Topics[Value]:
    """Read a file whose lines have `columns` words, the topic first, the document third.

    Args:
        path: the file.
        columns: words of a line.
        at: the position of the value.
        parse: makes the value of its word, or raises ValueError.
        what: the file is, for messages.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must be in UTF-8, but is not.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    topics: Topics[Value] = {}
    faults: list[Fault] = []
    first = next((number for number, line in enumerate(lines, start=1) if line.strip()), 0)
    has_commas = first > 0 and _has_commas(lines[first - 1], columns)
    for number, line in enumerate(lines, start=1):
        words = _between_commas(line) if has_commas else line.split()
        if not line.strip():
            continue
        if number == first and len(words) == columns and words[at].casefold() in _HEADERS:
            continue
        if len(words) != columns:
            faults.append(Fault(f"line {number}", f"must have {columns} words", f"{len(words)}"))
            continue
        topic, document = unquote(words[0]), unquote(words[2])
        own = topics.setdefault(topic, {})
        if document in own:
            rule = "must hold a document of a topic once"
            faults.append(Fault(f"line {number}", rule, quote_identifier(document)))
        try:
            own[document] = parse(words[at])
        except ValueError:
            rule = f"must have a {'whole number' if parse is int else 'number'} as word {at + 1}"
            faults.append(Fault(f"line {number}", rule, quote_identifier(words[at])))
    if not topics and not faults:
        faults.append(Fault("the file", "must have a line"))
    raise_faults(f"{path} is not {what}:", faults)
    return topics


def _has_commas(line: str, columns: int) -> bool:
    """Whether commas, not blanks, are between the words of a line."""
    words = _between_commas(line)
    return len(words) == columns and all(len(word.split()) == 1 for word in words)


def _between_commas(line: str) -> list[str]:
    try:
        return [word.strip() for word in next(csv.reader([line], skipinitialspace=True), [])]
    except csv.Error:  # a word is longer than a cell may be
        return []


def _score(word: str) -> float:
    score = float(word)
    if not math.isfinite(score):
        raise ValueError(word)
    return score


def _word(identifier: str) -> str:
    return re.sub(r"[\s%]", lambda found: quote(found[0]), identifier)
