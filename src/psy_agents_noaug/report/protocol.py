"""The figures of a protocol beside the published ones."""

from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError

from psy_agents_noaug.config.schema import NO_PROTOCOL, ProtocolConfig
from psy_agents_noaug.metrics.names import PROTOCOL_FIGURES, PROTOCOL_LABEL_FIGURES, protocol_prefix
from psy_agents_noaug.metrics.protocols import protocol_notes, protocol_systems, published_value
from psy_agents_noaug.report.facts import SplitFacts
from psy_agents_noaug.report.page import Cell, Part, Table
from psy_agents_noaug.report.tables import cell


def protocol_parts(
    splits: Sequence[SplitFacts], config: Mapping[str, object], criteria: Mapping[str, str]
) -> Iterator[Part]:
    """Yield a table of the systems and one of the labels, of each split with such figures.

    Args:
        splits: the one that the report is about first.
        config: the settings of the run or the evaluation.
        criteria: the names, by id.
    """
    protocol = _protocol(config)
    for split in splits:
        if protocol.figures is None or not protocol_systems(split.figures, protocol.name):
            continue
        yield _systems(split, protocol)
        yield _labels(split, protocol, criteria)


def _protocol(config: Mapping[str, object]) -> ProtocolConfig:
    """Return the protocol of a configuration; one that this version cannot read is none."""
    try:
        return ProtocolConfig.model_validate(config.get("protocol", {}))
    except ValidationError:
        return NO_PROTOCOL


def _systems(split: SplitFacts, protocol: ProtocolConfig) -> Table:
    assert protocol.figures is not None
    columns = PROTOCOL_FIGURES[protocol.figures]
    rows: list[list[str | Cell]] = [
        [shown, *(cell(split.figures, prefix + key, is_drawn=False) for key in columns.values())]
        for shown, prefix in protocol_systems(split.figures, protocol.name).items()
    ]
    for own in protocol.published:
        values = [own.figures.get(key) for key in columns.values()]
        rows.append(
            [f"published: {own.system}", *(Cell(published_value(value), value) for value in values)]
        )
    return Table(
        f"protocol_{split.name}",
        f"Protocol {protocol.name}, {split.name}",
        ["system", *columns],
        rows,
        notes=protocol_notes(
            split.figures,
            protocol.name,
            kind=protocol.figures,
            notes=protocol.notes,
            sources=[own.source for own in protocol.published],
        ),
    )


def _labels(split: SplitFacts, protocol: ProtocolConfig, criteria: Mapping[str, str]) -> Table:
    assert protocol.figures is not None
    prefix = f"{protocol_prefix(protocol.name)}per_label/"
    columns = PROTOCOL_LABEL_FIGURES[protocol.figures]
    labels = dict.fromkeys(
        key.removeprefix(prefix).rpartition("/")[0]
        for key in split.figures
        if key.startswith(prefix)
    )
    rows: list[list[str | Cell]] = [
        [
            label,
            criteria.get(label, ""),
            *(cell(split.figures, f"{prefix}{label}/{key}") for key in columns.values()),
        ]
        for label in labels
    ]
    return Table(
        f"protocol_labels_{split.name}",
        f"Protocol {protocol.name} by label, {split.name}",
        ["label", "name", *columns],
        rows,
        left=2,
    )
