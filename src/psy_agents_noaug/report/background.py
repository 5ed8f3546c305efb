"""The parts of a report on how figures came about: the training, the data, the settings."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from psy_agents_noaug.config.loading import flat
from psy_agents_noaug.data.splits import SPLIT_NAMES
from psy_agents_noaug.metrics.tables import format_value
from psy_agents_noaug.report.facts import RunFacts, SplitFacts
from psy_agents_noaug.report.figures import history_figure, picture
from psy_agents_noaug.report.page import Part, Pictures, Table
from psy_agents_noaug.run.annotators import (
    NOT_MET_AS_MERGED,
    agreement_rows,
    what_agreement_is_over,
)
from psy_agents_noaug.run.refits import PLAN, refit_of
from psy_agents_noaug.tracking.base import without_private_parts

# How a text of another split is like that of a post, by the keys of alignment.json.
DUPLICATES = {"exact": "equal", "near": "nearly equal", "quoted": "quoted"}


def training_parts(facts: RunFacts) -> Iterator[Part]:
    """Yield loss, monitor, learning rate and speed at each evaluation of the training."""
    rows = facts.history
    if not rows:
        return
    monitor = str((facts.config.get("training") or {}).get("monitor", ""))
    best = facts.manifest.get("best_step")
    losses = [key for key in rows[0] if key.startswith("train/loss")]
    wanted = {
        "loss": ("Training loss", losses),
        "monitor": (monitor, [monitor]),
        "learning_rate": ("Learning rate", ["train/learning_rate"]),
        "speed": ("Training examples per second", ["train/examples_per_second"]),
    }
    pictures = []
    steps = [row["step"] for row in rows]
    for name, (label, keys) in wanted.items():
        series = {
            key.removeprefix("train/"): [row.get(key) for row in rows]
            for key in keys
            if key in rows[0]
        }
        if not series:
            continue
        ends = "; ".join(
            f"{key} from {format_value(values[0], '.4g')} to {format_value(values[-1], '.4g')}"
            for key, values in series.items()
        )
        pictures.append(
            picture(
                f"history_{name}",
                history_figure(
                    steps,
                    series,
                    label=label,
                    best_step=best if name in ("loss", "monitor") else None,
                ),
                alt=f"{label} over {steps[-1]} updates: {ends}.",
                caption=f"{label} at each evaluation. Numbers: the table below.",
            )
        )
    yield Pictures(pictures)
    shown = [
        key
        for key in ("epoch", *losses, monitor, "train/learning_rate", "train/examples_per_second")
        if key in rows[0]
    ]
    table_rows = [
        [str(int(row["step"])), *(format_value(row[key], ".4g") for key in shown)] for row in rows
    ]
    yield Table(
        "history", "Evaluations during training", ["updates", *shown], table_rows, is_folded=True
    )


def data_parts(facts: RunFacts) -> Iterator[Part]:
    """Yield the parts on the corpus of a run."""
    yield from corpus_parts(
        facts.data,
        facts.criteria,
        origin=facts.origin,
        trained="train and val" if refit_of(facts.manifest) else "train",
        judged=facts.splits,
    )


def corpus_parts(
    data: Mapping[str, Any],
    criteria: Mapping[str, str],
    *,
    origin: str,
    trained: str = "train",
    judged: Sequence[SplitFacts] = (),
) -> Iterator[Part]:
    """Yield the splits, the labels, and what was found in the corpus.

    Args:
        data: alignment.json.
        criteria: the names, by id.
        origin: of the splits.
        trained: what the split that is trained on is made of.
        judged: splits with figures, for what of their texts was not read.
    """
    splits: Mapping[str, Any] = data.get("splits", {})
    if splits:
        rows = [
            [trained if name == "train" else name, str(own["posts"]), str(own["pairs"])]
            for name, own in splits.items()
        ]
        yield Table("splits", f"Splits ({origin})", ["split", "posts", "pairs"], rows)
    labels = data.get("labels", {})
    kinds = {
        "met": "positives",
        NOT_MET_AS_MERGED if "annotators" in data else "explicitly not met": "explicit_negatives",
        "not annotated": "unannotated",
    }
    columns = {name: labels[key] for name, key in kinds.items() if key in labels}
    columns |= {f"met in {name}": own["positives"] for name, own in splits.items()}
    if columns:
        rows = [
            [one, name, *(str(column.get(one, "")) for column in columns.values())]
            for one, name in criteria.items()
        ]
        head = ["criterion", "name", *columns]
        yield Table("annotations", "Labels of the pairs", head, rows, left=2)
    yield from _annotator_parts(data, criteria)
    found: Mapping[str, Any] = data.get("duplicates_across_splits", {})
    names = {kind: shown for kind, shown in DUPLICATES.items() if f"n_posts_{kind}" in found}
    if names:
        rows = [
            [shown, *(str(found[f"n_posts_{kind}"].get(one, "")) for one in SPLIT_NAMES)]
            for kind, shown in names.items()
        ]
        head = ["text of another split", *SPLIT_NAMES]
        yield Table("duplicates", "Posts with a text of another split", head, rows)
    counts = _counts(data) | _input_counts(judged)
    if counts:
        rows = [[name, str(value)] for name, value in counts.items()]
        yield Table("corpus", "Evidence, annotations and truncation", ["what", "number"], rows)


def _annotator_parts(data: Mapping[str, Any], criteria: Mapping[str, str]) -> Iterator[Part]:
    """Yield the agreement of the annotators."""
    found: Mapping[str, Any] = data.get("annotators") or {}
    if not found.get("n_shared"):
        return
    agreement = found["agreement"]
    names = {
        one: name for one, name in criteria.items() if f"per_criterion/{one}/n_pairs" in agreement
    }
    head, *rows = agreement_rows(agreement, names)
    caption = f"Agreement of annotators. {what_agreement_is_over(found)}"
    yield Table("agreement", caption, head, rows, left=2, n_last=1)


def _counts(data: Mapping[str, Any]) -> dict[str, int]:
    alignment, labels = data.get("alignment", {}), data.get("labels", {})
    corrections, annotators = data.get("corrections") or {}, data.get("annotators") or {}
    counts = {f"evidence found: {kind}": n for kind, n in alignment.get("counts", {}).items()}
    for name, found in (
        ("hard negative spans", alignment.get("hard_negatives")),
        ("ambiguous evidence", alignment.get("ambiguous", {}).get("count")),
        ("evidence missing", alignment.get("missing_evidence")),
        (
            "given offsets that cut words",
            alignment.get("offsets", {}).get("cut_words", {}).get("count"),
        ),
        (
            "contradicting annotations",
            len(labels["contradictions"]) if "contradictions" in labels else None,
        ),
        ("pairs on which annotators disagree", annotators.get("n_disagreements")),
        ("posts without annotation", labels.get("posts_without_annotation")),
        ("annotations without sentence", labels.get("annotations_without_sentence")),
        ("posts left out of training as duplicates", data.get("dropped_from_train", {}).get("n")),
        ("pairs corrected", corrections.get("pairs")),
        ("annotations replaced by corrections", corrections.get("annotations_replaced")),
        ("annotations added by corrections", corrections.get("annotations_added")),
    ):
        if found is not None:
            counts[name] = found
    return counts


def _input_counts(splits: Sequence[SplitFacts]) -> dict[str, str]:
    keys = ("n_windows", "n_truncated_texts", "share_of_truncated_texts")
    return {
        f"{key.replace('_', ' ').removeprefix('n ')}, {split.name}": format_value(
            split.figures[key]
        )
        for split in splits
        for key in keys
        if key in split.figures
    }


def settings_parts(facts: RunFacts, *, caption: str = "This run") -> Iterator[Part]:
    """Yield versions, hashes, evaluations and settings.

    Args:
        facts: of the run.
        caption: of the table that says what it is.
    """
    manifest, environment = facts.manifest, facts.manifest.get("environment") or {}
    git = environment.get("git") or {}
    known = {
        "run": facts.folder.name,
        "task": facts.task,
        "pretrained model": manifest.get("pretrained_model"),
        "status": manifest.get("status"),
        "made": manifest.get("created_at"),
        "command": " ".join(map(str, manifest.get("command") or [])),
        "weights, SHA-256": manifest.get("weights_sha256"),
        "corpus, SHA-256": (manifest.get("data") or {}).get("corpus"),
        "splits, SHA-256": (manifest.get("data") or {}).get("splits"),
        "folds, SHA-256": (manifest.get("data") or {}).get("folds"),
        "code, git commit": f"{git.get('commit')}{' (changed since)' if git.get('dirty') else ''}",
        "cross-validation plan, SHA-256": (refit_of(manifest) or {}).get(PLAN),
        "precision": manifest.get("mixed_precision"),
        "updates": manifest.get("steps"),
        "best checkpoint at update": manifest.get("best_step"),
        "evaluations on test": facts.n_test,
        "MLflow run": manifest.get("mlflow_run_id"),
    }
    rows = [
        [name, _shown(value)] for name, value in known.items() if value not in (None, "", "None")
    ]
    if facts.is_apart:
        caption = "The training that this evaluation is of"
    yield Table("run", caption, ["what", "value"], rows, left=2)
    records = [
        [str(line.get(key, "")) for key in ("at", "split", "step")]
        + [str(line.get("weights_sha256", ""))[:12]]
        + [str((line.get("data") or {}).get(key, ""))[:12] for key in ("corpus", "splits")]
        for line in facts.evaluations
    ]
    if records:
        head = ["at (UTC)", "split", "update", "weights", "corpus", "splits"]
        yield Table(
            "evaluations", "Evaluations of this run, test among them", head, records, left=6
        )
    if facts.config:
        rows = [[key, _shown(value)] for key, value in flat(facts.config).items()]
        yield Table("settings", "Settings", ["key", "value"], rows, left=2, is_folded=True)
    versions = {"python": environment.get("python"), **(environment.get("packages") or {})}
    rows = [[name, str(version)] for name, version in versions.items() if version]
    if rows:
        yield Table("versions", "Versions", ["package", "version"], rows, left=2, is_folded=True)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return without_private_parts(str(value))
