"""The figures of a protocol and of published systems, as rows and notes of tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from psy_agents_noaug.metrics.names import LABEL_BASELINES, protocol_prefix


def protocol_systems(metrics: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return what the keys of each of our systems begin with, by its shown name; empty without figures.

    Args:
        metrics: of a report.
        name: of the protocol.
    """
    prefix = protocol_prefix(name)
    found = {"model": prefix}
    found |= {shown: f"baseline_{own}/{prefix}" for own, shown in LABEL_BASELINES.items()}
    return {
        shown: own for shown, own in found.items() if any(key.startswith(own) for key in metrics)
    }


def published_value(value: float | None) -> str:
    """Return a published figure with at most three decimals, or nothing."""
    return "" if value is None else str(round(value, 3))


# What is said of labels that no text has, by the kind of the protocol.
_ABSENT = {
    "multilabel": "Labels that no text has count as 0 in macro-F1, as in scikit-learn",
    "ranking": "Left out of the means, as no sentence is relevant",
}


def protocol_notes(
    metrics: Mapping[str, Any],
    name: str,
    *,
    kind: str,
    notes: Sequence[str],
    sources: Sequence[str],
) -> list[str]:
    """Return the lines below a table of a protocol.

    Args:
        metrics: of a report.
        name: of the protocol.
        kind: of the protocol's figures.
        notes: of the protocol.
        sources: of the published figures.
    """
    prefix = protocol_prefix(name)
    lines = list(notes)
    if n_left_out := metrics.get(f"{prefix}n_texts_left_out"):
        lines.append(f"{n_left_out} texts are left out: one of their labels is not known.")
    absent = [
        key.removeprefix(f"{prefix}per_label/").removesuffix("/support")
        for key, value in metrics.items()
        if key.startswith(f"{prefix}per_label/") and key.endswith("/support") and not value
    ]
    if absent:
        lines.append(f"{_ABSENT[kind]}: {', '.join(absent)}.")
    lines += [f"Published: {source}." for source in dict.fromkeys(sources)]
    if not sources:
        lines.append("There are no published figures that could be verified.")
    return lines
