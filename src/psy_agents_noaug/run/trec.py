"""TREC files of an evaluation's rankings and of predictions, and the figures of TREC files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psy_agents_noaug.data.trec import Topics, qrels_lines, read_qrels, read_run, run_lines
from psy_agents_noaug.data.validation import Fault, quote_identifier, raise_faults
from psy_agents_noaug.errors import DataError, first_of
from psy_agents_noaug.metrics.names import RANKING_FIGURES
from psy_agents_noaug.metrics.ranking import DEPTH, mean_figures, topic_figures, trec_order
from psy_agents_noaug.metrics.tables import format_value, render_table
from psy_agents_noaug.metrics.values import Metrics
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.run.prediction_rows import SUFFIXES, read_predictions
from psy_agents_noaug.utils.files import make_folder, write_text

_KEPT = (
    20 * DEPTH
)  # documents of a topic in memory, of which those that cannot be ranked are then left


def write_rankings(directory: RunDirectory, split: str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write the ranking of each criterion's sentences as a TREC run, and their labels as qrels.

    A criterion without a relevant sentence is left out of both, as of the means.

    Args:
        directory: of the run or the evaluation; its name is the tag.
        split: of the lines.
        lines: prediction lines.
    """
    scores: Topics[float] = {}
    labels: Topics[int] = {}
    for line in lines:
        criterion = line["criterion_id"]
        document = line["example_id"].removesuffix(f"/{criterion}")
        scores.setdefault(criterion, {})[document] = line["probability"]
        labels.setdefault(criterion, {})[document] = line["label"]
    judged = {topic: own for topic, own in labels.items() if any(own.values())}
    run, qrels = directory.trec_files(split)
    make_folder(run.parent)
    write_text(run, run_text({topic: scores[topic] for topic in judged}, tag=directory.path.name))
    write_text(qrels, "".join(qrels_lines(topic, own.items()) for topic, own in judged.items()))


def run_text(scores: Topics[float], *, tag: str) -> str:
    """Return a TREC run with the best `DEPTH` documents of each topic.

    Scores are written in single precision, by which they are ranked.

    Args:
        scores: of the documents of each topic.
        tag: names the system.
    """
    parts = []
    for topic, own in scores.items():
        best = _best(own)
        shown = [str(np.float32(score)) for score in best.values()]
        parts.append(run_lines(topic, list(best), shown, tag=tag))
    return "".join(parts)


def _best(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the best `DEPTH` documents of a topic, the best first."""
    documents = list(scores)
    order = trec_order(list(scores.values()), np.asarray(documents))[:DEPTH]
    return {documents[k]: scores[documents[k]] for k in order}


def read_predictions_as_run(path: Path) -> Topics[float]:
    """Return the best `DEPTH` documents of each criterion in a file of predictions.

    A document is a post or, with `rows=sentence`, a sentence: `post_id/start_char-end_char`.

    Raises:
        DataError: with every row that is no prediction, or has no probability.
    """
    topics: Topics[float] = {}
    faults: list[Fault] = []
    for row in read_predictions(path, faults):
        if row.probability is None:
            faults.append(Fault(row.place, "must have a number as probability"))
            continue
        own = topics.setdefault(row.criterion_id, {})
        own[row.document] = row.probability
        if len(own) >= _KEPT:
            topics[row.criterion_id] = _best(own)
    raise_faults(f"{path} does not hold predictions of `psy-agents predict`:", faults)
    return topics


def trec(run: Path, qrels: Path | None, output: Path | None, *, as_json: bool = False) -> str:
    """Score a run by qrels, and write it as a TREC run; return what to print.

    Args:
        run: a TREC run, or the predictions of `psy-agents predict` (.jsonl, .csv, .parquet).
        qrels: None: nothing is scored.
        output: the TREC run to write; None: none.
        as_json: the figures as JSON with the keys of `mean_figures`, and the topics that count as 0
            or are left out of the means.

    Raises:
        DataError: a file is at fault, or no topic of the qrels has a relevant document, or none has a
            document of the run.
        StorageError: the run cannot be written.
    """
    holds_predictions = run.suffix.lower() in SUFFIXES
    ranked = read_predictions_as_run(run) if holds_predictions else read_run(run)
    printed = []
    if qrels is not None:
        judged = read_qrels(qrels)
        unjudged = _unjudged_topics(ranked, judged)
        metrics = run_figures(ranked, judged)
        if as_json:
            topics = {
                "topics_not_in_run": sorted(judged.keys() - ranked.keys()),
                "topics_without_judged_document": unjudged,
                "topics_without_relevant": sorted(
                    topic for topic, gains in judged.items() if max(gains.values()) <= 0
                ),
            }
            printed.append(json.dumps({**metrics.values, **topics}, indent=2))
        else:
            printed.append(_table(metrics, ranked, judged, unjudged))
    if output is not None:
        write_text(output, run_text(ranked, tag=run.stem))
        if not as_json:
            printed.append(f"run: {output}")
    return "\n".join(printed)


def _unjudged_topics(ranked: Topics[float], judged: Topics[int]) -> list[str]:
    """Return the topics of both files of which the qrels have no document of the run.

    Raises:
        DataError: no topic has such a document, so that the files are not of the same documents.
    """
    common = sorted(ranked.keys() & judged.keys())
    unjudged = [topic for topic in common if not ranked[topic].keys() & judged[topic].keys()]
    if len(unjudged) == len(common):
        ours, theirs = (
            first_of(
                [
                    f"{quote_identifier(one)} {quote_identifier(next(iter(own)))}"
                    for one, own in topics.items()
                ]
            )
            for topics in (ranked, judged)
        )
        raise DataError(
            "No document of the run is in the qrels under the same topic, so there are no figures.\n"
            f"Topics and their first documents in the run: {ours}.\n"
            f"In the qrels: {theirs}.\n"
            "Name topics and documents alike in both files."
        )
    return unjudged


def _table(
    metrics: Metrics, ranked: Topics[float], judged: Topics[int], unjudged: Sequence[str]
) -> str:
    rows = [["topic", *RANKING_FIGURES]]
    prefixes = {topic: f"per_label/{topic}/" for topic in judged}
    for shown, prefix in {**prefixes, "mean": ""}.items():
        cells = [format_value(metrics.values[prefix + key]) for key in RANKING_FIGURES.values()]
        rows.append([shown, *cells])
    n_topics = metrics.values["n_topics"]
    lines = [
        render_table(rows, left=1, rules=(1, len(rows) - 1)),
        f"The mean is over {n_topics} of {len(judged)} topics, those with a relevant document.",
    ]
    if absent := sorted(judged.keys() - ranked.keys()):
        lines.append(f"Topics without a line in the run count as 0: {first_of(absent)}.")
    if unjudged:
        lines.append(
            f"Topics of which no document of the run is in the qrels: {first_of(unjudged)}."
        )
    if others := sorted(ranked.keys() - judged.keys()):
        lines.append(f"Topics that the qrels do not have are left out: {first_of(others)}.")
    return "\n".join(lines)


def run_figures(ranked: Topics[float], judged: Topics[int]) -> Metrics:
    """Return the figures of `mean_figures`. A document that is not judged has no gain.

    Args:
        ranked: the scores of the documents of each topic.
        judged: their gains; a topic that is not ranked has figures of 0.

    Raises:
        DataError: no topic has a relevant document.
    """
    topics: dict[str, dict[str, float] | None] = {}
    for topic, gain_of in judged.items():
        best = _best(ranked.get(topic, {}))
        gains = np.asarray([gain_of.get(document, 0) for document in best], dtype=np.float64)
        relevant = np.asarray([gain for gain in gain_of.values() if gain > 0], dtype=np.float64)
        topics[topic] = topic_figures(gains, relevant) if len(relevant) else None
    if not any(topics.values()):
        raise DataError("No topic of the qrels has a relevant document, so there are no figures.")
    return mean_figures(topics)
