"""The tables of the criteria task for the console."""

from collections.abc import Mapping, Sequence
from typing import Any

from psy_agents_noaug.config.schema import ProtocolConfig
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.metrics.names import (
    CALIBRATION_FIGURES,
    DECISION_FIGURES,
    LABEL_BASELINES,
    LABEL_FIGURES,
    MERGED_BY,
    PROTOCOL_FIGURES,
    those_against,
)
from psy_agents_noaug.metrics.protocols import protocol_notes, protocol_systems, published_value
from psy_agents_noaug.metrics.subgroups import FIGURES as SUBGROUP_FIGURES
from psy_agents_noaug.metrics.tables import (
    against_others,
    compared_systems,
    format_value,
    render_table,
    with_interval,
)


def criteria_table(metrics: Mapping[str, Any], criteria: Sequence[Criterion]) -> str:
    """Return a row per criterion, then the averages; support is positives / pairs."""
    columns = LABEL_FIGURES
    has_annotators = "annotators/f1_macro" in metrics
    further = ["F1 of annotators"] if has_annotators else []
    rows = [["criterion", "name", "support", *columns, *further]]
    for criterion in criteria:
        prefix = f"per_criterion/{criterion.criterion_id}/"
        support = f"{metrics[prefix + 'n_positive']}/{metrics[prefix + 'n_pairs']}"
        cells = [with_interval(metrics, prefix + name) for name in columns.values()]
        if has_annotators:
            cells.append(with_interval(metrics, f"annotators/{prefix}f1"))
        rows.append([criterion.criterion_id, criterion.name, support, *cells])
    averaged = f"mean of {metrics['n_criteria_in_macro']}/{len(criteria)} criteria"
    support = f"{metrics['n_positive']}/{metrics['n_pairs']}"
    for kind, name, counted in (("macro", averaged, ""), ("micro", "all pairs", support)):
        cells = [with_interval(metrics, f"{column}_{kind}") for column in columns.values()]
        if has_annotators:
            cells.append(with_interval(metrics, f"annotators/f1_{kind}"))
        rows.append([kind, name, counted, *cells])
    return render_table(rows, left=2, rules=(1, len(rows) - 2))


def decisions_table(
    metrics: Mapping[str, Any], criteria: Sequence[Criterion], *, specificity: float
) -> str:
    """Return sensitivity, specificity and predictive values of each criterion.

    Args:
        metrics: of a report.
        criteria: the rows.
        specificity: that of `recall_at_specificity`.
    """
    columns = DECISION_FIGURES
    at_prevalence = {"PPV*": "precision_at_prevalence", "NPV*": "npv_at_prevalence"}
    first = f"per_criterion/{criteria[0].criterion_id}/"
    extra = {}
    if f"{first}recall_at_specificity" in metrics:
        extra[f"sens. at spec. {specificity:g}"] = "recall_at_specificity"
    if f"{first}precision_at_prevalence" in metrics:
        extra |= at_prevalence
    rows = [["criterion", *columns, *extra]]
    for criterion in criteria:
        prefix = f"per_criterion/{criterion.criterion_id}/"
        cells = [with_interval(metrics, prefix + name) for name in columns.values()]
        cells += [format_value(metrics[prefix + name]) for name in extra.values()]
        rows.append([criterion.criterion_id, *cells])
    table = render_table(rows, left=1)
    if "prevalence" in metrics:
        share = f"{metrics['prevalence']:g}"
        table += f"\n* where a share of {share} of the judged texts meets the criterion"
    return table


def systems_table(metrics: Mapping[str, Any]) -> str:
    """Return a row for the model and each baseline, and a line on which of them the model beats."""
    columns = {
        "micro-F1": "f1_micro",
        "AUROC": "auroc_macro",
        "AP": "average_precision_macro",
        "accuracy": "accuracy",
        "Brier": "brier",
    }
    more_rows, notes = [], []
    if metrics.get("cross_fitted/f1_macro") is not None:
        value = format_value(metrics["cross_fitted/f1_macro"])
        more_rows.append(["model, thresholds of other posts", value, *[""] * len(columns)])
    more_rows += against_others(metrics, "f1_macro", n_columns=len(columns), further=("f1_micro",))
    if "annotators/n_votes" in metrics:
        notes.append(annotators_line(metrics))
    return compared_systems(
        metrics,
        LABEL_BASELINES,
        key="f1_macro",
        name="macro-F1",
        columns=columns,
        more_rows=more_rows,
        notes=notes,
    )


def annotators_line(metrics: Mapping[str, Any]) -> str:
    """Return what the F1 of the annotators is over, and how the model's differs from it."""
    counts = (
        f"{metrics['annotators/n_votes']} labels of {metrics['annotators/n_annotators']} annotators on "
        f"{metrics['annotators/n_pairs']} pairs"
    )
    if "annotators/f1_macro" not in metrics:
        return "No annotator can be judged against others: no pair has labels of two."
    gain = with_interval(metrics, "annotators/f1_macro_gain", spec="+.3f")
    return (
        f"Annotators: {counts}, each against the labels of {those_against(metrics.get(MERGED_BY))}; "
        f"macro-F1 of the model on them minus that of the annotators: {gain}."
    )


def calibration_table(metrics: Mapping[str, Any]) -> str:
    """Return the measures of the probabilities as they are, and after the calibration fitted on val."""
    columns = CALIBRATION_FIGURES
    rows = [["probabilities", *columns]]
    for name, prefix in {"raw": "", "calibrated": "calibrated/"}.items():
        if f"{prefix}brier_skill" in metrics:
            cells = [format_value(metrics[prefix + key]) for key in columns.values()]
            rows.append([name, *cells])
    return render_table(rows, left=1)


def subgroups_table(metrics: Mapping[str, Any]) -> str:
    """Return a row per subgroup of the pairs."""
    rows = [["subgroup", "", "pairs", "met", "macro-F1", "micro-F1", "AUROC (all pairs)"]]
    for key in metrics:
        if key.startswith("subgroup/") and key.endswith("/n_pairs"):
            prefix = key.removesuffix("n_pairs")
            _, name, value, _ = key.split("/", 3)
            figures = [with_interval(metrics, prefix + figure) for figure in SUBGROUP_FIGURES]
            counts = [str(metrics[f"{prefix}{count}"]) for count in ("n_pairs", "n_positive")]
            rows.append([name, value, *counts, *figures])
    return render_table(rows, left=2) if len(rows) > 1 else ""


def protocol_table(metrics: Mapping[str, Any], protocol: ProtocolConfig) -> str:
    """Return the figures of a protocol, a row per system, ours first; empty without a protocol."""
    systems = protocol_systems(metrics, protocol.name)
    if protocol.figures is None or not systems:
        return ""
    columns = PROTOCOL_FIGURES[protocol.figures]
    rows = [[f"protocol {protocol.name}", *columns]]
    for shown, prefix in systems.items():
        cells = [_with_interval_if_any(metrics, prefix + key) for key in columns.values()]
        rows.append([shown, *cells])
    for own in protocol.published:
        cells = [published_value(own.figures.get(key)) for key in columns.values()]
        rows.append([f"published: {own.system}", *cells])
    sources = [own.source for own in protocol.published]
    notes = protocol_notes(
        metrics, protocol.name, kind=protocol.figures, notes=protocol.notes, sources=sources
    )
    return "\n".join([render_table(rows, left=1), *notes])


def _with_interval_if_any(metrics: Mapping[str, Any], key: str) -> str:
    has_interval = f"{key}_ci_low" in metrics
    return with_interval(metrics, key) if has_interval else format_value(metrics[key])
