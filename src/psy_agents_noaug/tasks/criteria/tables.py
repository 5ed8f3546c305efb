"""The tables of the criteria task for the console."""

from collections.abc import Mapping, Sequence
from typing import Any

from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.metrics.subgroups import FIGURES as SUBGROUP_FIGURES
from psy_agents_noaug.metrics.tables import beaten_line, format_value, render_table, with_interval

BASELINES = {
    "tfidf_lr": "TF-IDF + LR",
    "majority": "majority",
    "always_met": "always met",
}


def criteria_table(metrics: Mapping[str, Any], criteria: Sequence[Criterion]) -> str:
    """Return a row per criterion, then the averages; support is positives / pairs."""
    columns = {"F1": "f1", "AUROC": "auroc", "AP": "average_precision"}
    rows = [["criterion", "name", "support", *columns]]
    for criterion in criteria:
        prefix = f"per_criterion/{criterion.criterion_id}/"
        support = f"{metrics[prefix + 'n_positive']}/{metrics[prefix + 'n_pairs']}"
        cells = [with_interval(metrics, prefix + name) for name in columns.values()]
        rows.append([criterion.criterion_id, criterion.name, support, *cells])
    averaged = f"mean of {metrics['n_criteria_in_macro']}/{len(criteria)} criteria"
    support = f"{metrics['n_positive']}/{metrics['n_pairs']}"
    for kind, name, counted in (("macro", averaged, ""), ("micro", "all pairs", support)):
        cells = [with_interval(metrics, f"{column}_{kind}") for column in columns.values()]
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
    columns = {
        "sensitivity": "recall",
        "specificity": "specificity",
        "PPV": "precision",
        "NPV": "npv",
    }
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
    rows = [["system", "macro-F1 [95 % interval]", *columns]]
    systems = {"model": ""} | {name: f"baseline_{key}/" for key, name in BASELINES.items()}
    for name, prefix in systems.items():
        cells = [format_value(metrics[prefix + key]) for key in columns.values()]
        rows.append([name, with_interval(metrics, f"{prefix}f1_macro"), *cells])
    if metrics.get("cross_fitted/f1_macro") is not None:
        value = format_value(metrics["cross_fitted/f1_macro"])
        rows.append(["model, thresholds of other posts", value, *[""] * len(columns)])
    beaten = beaten_line(metrics, BASELINES, key="f1_macro", name="macro-F1")
    return f"{render_table(rows, left=2)}\n{beaten}"


def calibration_table(metrics: Mapping[str, Any]) -> str:
    """Return the measures of the probabilities as they are, and after the calibration fitted on val."""
    columns = {
        "Brier": "brier",
        "skill": "brier_skill",
        "ECE": "ece",
        "ECE if exact": "ece_if_calibrated",
        "slope": "calibration_slope",
        "intercept": "calibration_intercept",
    }
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


def posts_table(metrics: Mapping[str, Any]) -> str:
    """Return the figures of whole posts in a few lines."""
    error, bias = (
        with_interval(metrics, f"per_post/n_met_{name}", spec=spec)
        for name, spec in (("mae", ".2f"), ("bias", "+.2f"))
    )
    lines = [
        f"criteria met per post ({metrics['per_post/n_judged']} posts): mean absolute error {error}, "
        f"bias {bias}"
    ]
    if "false_alarms_per_post" in metrics:
        lines.append(
            f"false alarms per post: {format_value(metrics['false_alarms_per_post'], '.2f')}"
        )
    if "per_post/episode/recall" in metrics:
        prefix = "per_post/episode/"
        cells = [
            f"{shown} {with_interval(metrics, prefix + name)}"
            for shown, name in (
                ("sensitivity", "recall"),
                ("specificity", "specificity"),
                ("PPV", "precision"),
            )
        ]
        count = f"{metrics[prefix + 'n_positive']} of {metrics[prefix + 'n_pairs']} posts"
        lines.append(f"five criteria or more, with A.1 or A.2 ({count}): {', '.join(cells)}")
    return "\n".join(lines)
