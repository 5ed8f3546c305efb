"""From the labels of a tool to criteria: by the user's map, or by name or alias of the criteria."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rapidfuzz import fuzz, process

from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.tables import read_table
from psy_agents_noaug.data.validation import (
    Fault,
    criterion_names,
    raise_faults,
    resolve_criterion,
)
from psy_agents_noaug.errors import ConfigError, DataError, faults_message
from psy_agents_noaug.importers.documents import Mark

_MIN_SIMILARITY = 60.0  # of 100, for a suggestion
_MAX_SHOWN = 64
_LEFT_OUT = (None, "", "null", "none", "-")


@dataclass(frozen=True, slots=True)
class Target:
    """What a label says: that a criterion is met (`status` 1), or that it is not (0)."""

    criterion_id: str
    status: int = 1


class LabelMap:
    """Finds the criterion of a mark.

    Args:
        entries: of the user's map: a label, `label[NAME]` or `label[NAME=VALUE]` with an attribute,
            `field:label` or `field:*` to a target, or to None for what is left out on purpose.
        criteria: whose ids, names and aliases are labels too.
    """

    def __init__(self, entries: Mapping[str, Target | None], criteria: Sequence[Criterion]) -> None:
        self._entries = {_folded(key): target for key, target in entries.items()}
        self._spelling = {_folded(key): key for key in entries}
        self._names = criterion_names(criteria)
        self._criteria = criteria
        self._used: set[str] = set()
        self.unknown: Counter[tuple[str, str]] = Counter()

    def knows(self, label: str, field: str) -> bool:
        """Return whether a label of a field is in the map or names a criterion."""
        keys = (f"{field}:{label}", label, f"{field}:*")
        is_mapped = any(_folded(key) in self._entries for key in keys)
        return is_mapped or resolve_criterion(label, self._names) is not None

    def reads_attribute(self, mark: Mark, attribute: str) -> bool:
        """Return whether the map has an entry for a label with this attribute."""
        return self._key(mark, attribute) is not None

    def differing(self, mark: Mark) -> list[str]:
        """Return the entries of a mark's attributes if they say different things."""
        keys = self._attribute_keys(mark)
        is_one = len({self._entries[key] for key in keys}) <= 1
        return [] if is_one else [self._spelling[key] for key in keys]

    def _attribute_keys(self, mark: Mark) -> list[str]:
        """Return the keys of the map's entries for attributes of a mark."""
        found = (self._key(mark, attribute) for attribute in mark.attributes)
        return list(dict.fromkeys(key for key in found if key is not None))

    def _key(self, mark: Mark, attribute: str) -> str | None:
        """Return the key of an attribute: its value, or its name, which stands for all but false."""
        name, _, value = attribute.partition("=")
        keys = [attribute, *([name] if value != "false" else [])]
        folded = [_folded(f"{mark.label}[{key}]") for key in keys]
        return next((key for key in folded if key in self._entries), None)

    def target(self, mark: Mark) -> Target | None:
        """Return what a mark says; None if it is left out, or not known, which is counted."""
        of_attributes = self._attribute_keys(mark)
        self._used.update(of_attributes)
        keys = (f"{mark.field}:{mark.label}", mark.label, f"{mark.field}:*")
        for key in (*of_attributes, *map(_folded, keys)):
            if key in self._entries:
                self._used.add(key)
                return self._entries[key]
        criterion_id = resolve_criterion(mark.label, self._names)
        if criterion_id is None:
            self.unknown[mark.label, mark.field] += 1
            return None
        return Target(criterion_id)

    def mapped_criteria(self) -> set[str]:
        """Return the criteria that labels of the user's map stand for."""
        return {target.criterion_id for target in self._entries.values() if target is not None}

    def unused(self) -> list[str]:
        """Return the keys of the map that no label has."""
        return [self._spelling[key] for key in self._entries if key not in self._used]

    def raise_unknown(self) -> None:
        """Refuse labels that are not known, all at once, each with the nearest criterion."""
        faults = []
        choices = {name: c for c in self._criteria for name in (c.criterion_id, c.name, *c.aliases)}
        for (label, field), number in sorted(self.unknown.items(), key=lambda item: -item[1]):
            nearest = process.extractOne(
                label, list(choices), scorer=fuzz.WRatio, processor=str.casefold
            )
            place = f"{shown_label(label)}{f' in {field}' if field else ''}"
            detail = f"{number:,} times"
            if nearest is not None and nearest[1] >= _MIN_SIMILARITY:
                criterion = choices[nearest[0]]
                detail += f"; nearest is {criterion.criterion_id}, {criterion.name}"
            faults.append(Fault(place, "must be mapped to a criterion, or to null", detail))
        raise_faults(
            "These labels are no criterion (map={LABEL: CRITERION_ID, LABEL: null}, or map=FILE.yaml):",
            faults,
        )


def read_map(value: str | Mapping[str, Any] | None, criteria: Sequence[Criterion]) -> LabelMap:
    """Return the map of a setting.

    Args:
        value: labels to criteria; or the path of a YAML file of that, or of a table with the columns
            `label`, `criterion_id` and, if wanted, `status`.
        criteria: that labels may be mapped to.

    Raises:
        DataError: the file cannot be read, or names criteria that are none; lists them all.
        ConfigError: the same of a setting on the command line.
    """
    path = Path(value) if isinstance(value, str) else None
    given = _file_entries(path) if path is not None else list(dict(value or {}).items())  # type: ignore[arg-type]
    names = criterion_names(criteria)
    entries: dict[str, Target | None] = {}
    seen: set[str] = set()
    faults = []
    for label, target in given:
        if not isinstance(label, str | int) or isinstance(label, bool):
            faults.append(f"{label}: a label must be text; put it in quotes")
            continue
        if (folded := _folded(str(label))) in seen:
            faults.append(f"{shown_label(str(label))}: must be there once, in whatever case")
        seen.add(folded)
        try:
            entries[str(label)] = _target(target, names)
        except ValueError as error:
            faults.append(f"{shown_label(str(label))}: {error}")
    if faults:
        kind: type[ConfigError | DataError] = ConfigError if path is None else DataError
        known = ", ".join(criterion.criterion_id for criterion in criteria)
        source = f"map={path}" if path is not None else "`map`"
        raise kind(faults_message(f"{source} cannot be used (the criteria are {known}):", faults))
    return LabelMap(entries, criteria)


def _file_entries(path: Path) -> list[tuple[Any, Any]]:
    if path.suffix.lower() not in (".yaml", ".yml"):
        frame = read_table(path)
        if missing := [c for c in ("label", "criterion_id") if c not in frame]:
            raise DataError(f"{path}: must have the columns label and criterion_id, not {missing}.")
        statuses = frame["status"] if "status" in frame else [None] * len(frame)
        rows = zip(frame["label"], frame["criterion_id"], statuses, strict=True)
        return [
            (label, criterion and {"criterion_id": criterion, "status": status or "1"})
            for label, criterion, status in rows
        ]
    try:
        found = _yaml_entries(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date may be none
        raise DataError(f"{path}: must be YAML ({type(error).__name__}).") from None
    if found is None:
        raise DataError(f"{path}: must map labels to criteria, LABEL: CRITERION_ID on each line.")
    return found


def _yaml_entries(text: str) -> list[tuple[Any, Any]] | None:
    """Return the keys and values of a YAML mapping, also keys that are there twice; None: it is none."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            return None
        return [tuple(loader.construct_object(n, deep=True) for n in pair) for pair in node.value]
    finally:
        loader.dispose()


def _target(value: Any, names: Mapping[str, str]) -> Target | None:
    """Return what a value of the map stands for.

    Raises:
        ValueError: it is no criterion, or another status than 0 or 1.
    """
    status: Any = 1
    if isinstance(value, Mapping):
        if set(value) - {"criterion_id", "status"} or "criterion_id" not in value:
            raise ValueError("must have criterion_id and, if wanted, status")
        value, status = value["criterion_id"], value.get("status", 1)
    if value is None or (isinstance(value, str) and value.strip().casefold() in _LEFT_OUT):
        return None
    if str(status) not in ("0", "1"):
        raise ValueError("must have the status 0 or 1")
    criterion_id = resolve_criterion(str(value), names)
    if criterion_id is None:
        raise ValueError(f"{shown_label(str(value))} is no criterion")
    return Target(criterion_id, int(status))


def shown_label(label: str) -> str:
    """Quote a label, which may be a phrase, unless it is so long that it may be text."""
    is_short = len(label) <= _MAX_SHOWN and label.isprintable()
    return f"'{label}'" if is_short else f"<{len(label)} characters, not shown>"


def _folded(label: str) -> str:
    return " ".join(label.split()).casefold()
