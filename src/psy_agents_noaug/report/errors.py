"""A page of a run's predictions beside the posts that they are about. It holds text: only on request."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psy_agents_noaug.config.loading import as_of_today, validate_train_config
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.splits import OUT_OF_FOLD, shown_split
from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.metrics.label_errors import label_errors
from psy_agents_noaug.report.page import Section, render
from psy_agents_noaug.run.data import LabelledCorpus, label_corpus
from psy_agents_noaug.run.directory import RunDirectory, readable_lines
from psy_agents_noaug.run.series.recorded import RecordedSeries, read_series
from psy_agents_noaug.tasks.registry import task_class
from psy_agents_noaug.utils.files import write_bytes
from psy_agents_noaug.utils.words import split_words

FILE = "errors.html"
KINDS = ("right", "false alarm", "miss", "wrong evidence")
# Val first: errors of test should not guide what is built.
_SPLITS = ("val", OUT_OF_FOLD, "test", "all", "train")
# Characters that would end the element that holds the data, or a line of script.
_ESCAPED = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})
_DIGITS = 4
_SECTIONS = [
    Section("Predictions", ()),
    Section("Corrections", ()),
    Section("How to read this page", ()),
]

Line = Mapping[str, Any]


def write_errors_page(path: Path) -> Path:
    """Write `errors.html` into a run's directory, readable for its owner alone.

    Args:
        path: the directory of a run, with config.yaml, manifest.json and predictions, or that of a
            cross-validation or of several seeds.

    Returns:
        Where the page is.

    Raises:
        ConfigError: there is no such run, or its settings are damaged.
        DataError: there are no predictions, or the corpus is not the one that they are about.
        StorageError: the page cannot be written.
    """
    directory, series = RunDirectory(path), read_series(path)
    if series is None and not directory.config.is_file():
        raise ConfigError(
            f"{path} must hold a config.yaml, which says where the posts are, but does not. An "
            "evaluation that was made by an earlier version has none: make it again."
        )
    if series is not None:
        lines, recorded = _read_series_lines(series), series.config
    else:
        lines, recorded = _read_predictions(directory), directory.read_config()
    config = validate_train_config(as_of_today(recorded))
    labelled = label_corpus(config)
    _check_corpus(directory, labelled)
    data = errors_data(labelled, lines, path=path)
    data["labels"] = list(range(int(task_class(config.task.name).labels.high) + 1))
    data["storage"] = f"psy-agents {path.resolve().name} {labelled.corpus.fingerprint[:16]}"
    html = render(
        "errors.html.jinja",
        title=f"Errors beside their posts: {path.resolve().name}",
        sections=_SECTIONS,
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPED),
        facts=_facts(lines, data),
    )
    page = path / FILE
    write_bytes(page, html.encode(), mode=0o600)
    return page


def errors_data(
    labelled: LabelledCorpus, lines: Mapping[str, Sequence[Line]], *, path: Path
) -> dict[str, Any]:
    """Return what the page shows: posts once, and a column per property of the predictions.

    Args:
        labelled: the corpus that was judged.
        lines: of predictions, by split.
        path: of the run, for messages.

    Raises:
        DataError: a line is of a pair that the corpus does not have.
    """
    examples = {example.example_id: example for example in labelled.examples}
    rows = [(split, line) for split, own in lines.items() for line in own]
    unknown = [line for _, line in rows if line.get("example_id") not in examples]
    if unknown:
        raise _other_corpus(path, f"{len(unknown)} predictions are of pairs that it does not have")
    pairs = [(split, line, examples[line["example_id"]]) for split, line in rows]
    post_ids = sorted({example.post_id for _, _, example in pairs})
    criterion_ids = [criterion.criterion_id for criterion in labelled.corpus.criteria]
    number_of = {post_id: number for number, post_id in enumerate(post_ids)}
    columns: dict[str, list[Any]] = defaultdict(list)
    for split, line, example in pairs:
        columns["split"].append(list(lines).index(split))
        columns["post"].append(number_of[example.post_id])
        columns["criterion"].append(criterion_ids.index(example.criterion_id))
        columns["kind"].append(KINDS.index(kind_of(line, example)))
        columns["label"].append(example.label)
        columns["decision"].append(line.get("decision"))
        columns["probability"].append(_rounded(_probability(line)))
        columns["threshold"].append(_rounded(line.get("threshold")))
        columns["confidence"].append(_rounded(confidence_of(line)))
        columns["judged"].append(_judged(example))
        columns["predicted"].append(
            [
                [span["start_char"], span["end_char"], _rounded(span.get("score")), span["right"]]
                for span in line.get("evidence", ())
            ]
        )
        columns["seed"].append(line.get("seed"))
    columns["quality"], columns["suspected"] = _label_errors(pairs)
    return {
        "kinds": KINDS,
        "splits": [shown_split(split).replace("_", " ") for split in lines],
        "criteria": [[c.criterion_id, c.name] for c in labelled.corpus.criteria],
        "posts": _posts(labelled, number_of, criterion_ids),
        "n": len(pairs),
        "is_probability": any(value is not None for value in columns["probability"]),
        # A column that says nothing is left out.
        "columns": {
            name: values
            for name, values in columns.items()
            if any(v not in (None, []) for v in values)
        },
    }


def kind_of(line: Line, example: Example) -> str:
    """Return the kind of a prediction, one of `KINDS`.

    The decision comes first. Where it is right, or the task decides by evidence alone, it is "wrong
    evidence" unless each predicted span is right and each gold span is found (IOU of words of at least
    0.5, as in the metrics). Evidence of which the corpus says nothing is not wrong.

    Args:
        line: of the predictions.
        example: its pair.
    """
    gold, found = line.get("gold_evidence"), line.get("evidence")
    decided = line.get("decision")
    if decided is None and found is not None:
        # Where the task has no decision, that there is evidence is one.
        decided = int(bool(found))
    label = int(example.label > 0) if line.get("decision") is None else example.label
    if decided is not None and decided != label:
        return "false alarm" if decided > label else "miss"
    if found is not None and gold is not None:
        is_right = all(span["right"] for span in found) and all(span["found"] for span in gold)
        return "right" if is_right else "wrong evidence"
    return "right"


def confidence_of(line: Line) -> float | None:
    """Return how sure the model is of a decision; None where the task does not say.

    The probability of what was decided, calibrated where it is; of evidence alone, how far the best
    score is from the threshold.
    """
    probability = _probability(line)
    if probability is not None and "decision" in line:
        return probability if line["decision"] else 1.0 - probability
    best, threshold = line.get("null_score_diff"), line.get("null_score_diff_threshold")
    if best is None or threshold is None:
        return None
    return abs(float(threshold) - float(best))


def _read_predictions(directory: RunDirectory) -> dict[str, list[Line]]:
    """Return the lines of each split that was predicted."""
    files = {name: directory.predictions_of(name) for name in _SPLITS}
    found: dict[str, list[Line]] = {
        name: list(readable_lines(file)) for name, file in files.items() if file.is_file()
    }
    if not any(found.values()):
        raise DataError(
            f"{directory.path} has no predictions to show. Make some by `psy-agents eval "
            f"checkpoint={directory.path}`."
        )
    return {name: lines for name, lines in found.items() if lines}


def _read_series_lines(series: RecordedSeries) -> dict[str, list[Line]]:
    """Return the lines of all runs: out of fold, or on the val that all of them have."""
    return {OUT_OF_FOLD if series.has_folds else series.split: list(series.lines())}


def _check_corpus(directory: RunDirectory, labelled: LabelledCorpus) -> None:
    """Refuse another corpus than the one that was judged.

    Raises:
        DataError: its fingerprint is not the one that the run recorded.
    """
    recorded = directory.read_manifest().get("data")
    for line in directory.read_evaluations():
        recorded = recorded or line.get("data")
    if (recorded or {}).get("corpus") != labelled.corpus.fingerprint:
        raise _other_corpus(directory.path, "its content has changed since")


def _other_corpus(path: Path, reason: str) -> DataError:
    return DataError(
        f"The corpus that config.yaml names is not the one that the predictions in {path} are about: "
        f"{reason}. Bring the files back as they were, or evaluate again on those of today."
    )


def _probability(line: Line) -> float | None:
    value = line.get("calibrated_probability", line.get("probability"))
    return None if value is None else float(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), _DIGITS)


def _judged(example: Example) -> list[int] | str | None:
    """Return where the judged sentence is, or its wording; None where the whole post is judged."""
    if example.sentence is not None:
        return [example.sentence.start_char, example.sentence.end_char]
    is_post = example.example_id == f"{example.post_id}/{example.criterion_id}"
    return None if is_post else example.text


def _posts(
    labelled: LabelledCorpus, number_of: Mapping[str, int], criterion_ids: Sequence[str]
) -> list[dict[str, Any]]:
    """Return id, text, words and annotated spans of each post that was judged."""
    spans: dict[str, set[tuple[int, Span, int]]] = defaultdict(set)
    for annotation in labelled.corpus.annotations:
        span = labelled.spans.get(annotation.row)
        if annotation.post_id in number_of and span is not None:
            criterion = criterion_ids.index(annotation.criterion_id)
            spans[annotation.post_id].add((criterion, span, int(annotation.status > 0)))
    return [
        {
            "id": post.post_id,
            "text": post.text,
            "words": len(split_words(post.text)),
            "spans": [
                [criterion, span.start_char, span.end_char, is_met]
                for criterion, span, is_met in sorted(spans[post.post_id])
            ],
        }
        for post in sorted(labelled.corpus.posts, key=lambda post: post.post_id)
        if post.post_id in number_of
    ]


def _label_errors(
    pairs: Iterable[tuple[str, Line, Example]],
) -> tuple[list[float | None], list[int]]:
    """Return the quality of the label of each prediction, and whether it is suspected.

    Of predictions of training's own pairs neither is known. Of several predictions of a pair, as of
    several seeds, the mean counts. Out-of-fold predictions are taken alone where there are some.
    """
    pairs = list(pairs)
    has_folds = any(split == OUT_OF_FOLD for split, _, _ in pairs)
    of_pair: dict[str, list[int]] = defaultdict(list)
    for index, (split, line, example) in enumerate(pairs):
        is_unseen = split == OUT_OF_FOLD if has_folds else split != "train"
        if is_unseen and _probability(line) is not None:
            of_pair[example.example_id].append(index)
    firsts = [pairs[own[0]][2] for own in of_pair.values()]
    found = label_errors(
        np.array([example.label > 0 for example in firsts], dtype=np.int64),
        np.array([np.mean([_probability(pairs[i][1]) for i in own]) for own in of_pair.values()]),
        np.array([example.criterion_id for example in firsts], dtype=str),
    )
    quality: list[float | None] = [None] * len(pairs)
    suspected = [0] * len(pairs)
    for own, score, is_suspected in zip(of_pair.values(), *found, strict=True):
        for index in own:
            quality[index], suspected[index] = _rounded(float(score)), int(is_suspected)
    return quality, suspected


def _facts(lines: Mapping[str, Sequence[Line]], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the text of the page depends on."""
    columns = data["columns"]
    return {
        "has_sentences": "judged" in columns,
        "has_evidence": any("evidence" in line for own in lines.values() for line in own),
        "has_probability": data["is_probability"],
        "has_quality": "quality" in columns,
        "has_test": "test" in lines,
        "has_train": "train" in lines,
        "has_folds": OUT_OF_FOLD in lines,
        "has_seeds": "seed" in columns,
    }
