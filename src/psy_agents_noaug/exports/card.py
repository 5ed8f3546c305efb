"""The model card of an export: what the model is, what it was measured at, and what it is not for."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from psy_agents_noaug import __version__
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.exports.facts import RunFacts
from psy_agents_noaug.exports.source import Source
from psy_agents_noaug.metrics.tables import beaten_line, format_value, with_interval
from psy_agents_noaug.models.encoder import BUNDLED_PREFIX
from psy_agents_noaug.run.refits import describe, refit_of
from psy_agents_noaug.tasks.registry import task_class

UNKNOWN_LICENSE = "other"
_QUESTIONS = {
    "criteria": "whether a text meets a criterion",
    "evidence": "which words of a text show a criterion, if any",
    "joint": "whether a text meets a criterion, and which words show it",
}
_UNITS = {
    "post": "Its texts are whole posts.",
    "sentence": "Its texts are single sentences of posts: cut a post into sentences first.",
}
_BASELINE = re.compile(r"baseline_(\w+)/")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_BUNDLED_FROM = "sentence-transformers"
_LIMITS = """\
For research on texts of the kind that it was trained on. It gives no diagnosis, and nothing that it
says of a text is one: the criteria of the DSM-5 are judged by clinicians, in persons and not in
posts. It is not for monitoring people, for decisions about them (health care, insurance, work,
police), or for contact with them. It may be wrong more often for groups, platforms and languages that
its training data have few posts of. Probabilities and thresholds were fitted at the prevalence of the
posts that they were fitted on and do not hold at another."""
CITATION = f"""\
```bibtex
@software{{psy_agents_noaug,
  title = {{PSY Agents NO-AUG}},
  author = {{{{PSY Agents NO-AUG contributors}}}},
  version = {{{__version__}}},
}}
```"""


@dataclass(frozen=True)
class Form:
    """What a format says of itself on the card.

    Args:
        library: as the Hub names it.
        code: Python code that loads the export.
        notes: on how to use it, one paragraph each.
        pipeline_tag: of the Hub; None for models that none of its pipelines loads.
    """

    library: str
    code: str
    notes: Sequence[str] = ()
    pipeline_tag: str | None = None


def model_card(
    source: Source,
    facts: RunFacts,
    form: Form,
    *,
    license_id: str,
    versions: Mapping[str, str | None],
) -> str:
    """Return the text of README.md.

    Args:
        source: what is exported.
        facts: of the run.
        form: of the export.
        license_id: of the model, as the Hub names it; UNKNOWN_LICENSE: nobody has told.
        versions: of the packages that made the export.
    """
    checkpoint, config = source.shared, source.config
    kind = task_class(checkpoint.task)
    headline = kind.settings.headline_metrics
    name = f"psy-agents-noaug-{checkpoint.task}"
    results = list(_eval_results(config, facts, headline))
    data = ModelCardData(
        license=license_id,
        library_name=form.library,
        pipeline_tag=form.pipeline_tag,
        base_model=_base_model(kind.encoder_sources(config.model).values()),
        tags=["psy-agents-noaug", "dsm-5", "mental-health", "research"],
        model_name=name,
        eval_results=results or None,
    )
    sections = {
        "How to load it": [f"```python\n{form.code}\n```", *form.notes],
        "Criteria": [
            _criteria_table(source.criteria, checkpoint.decision_rule),
            _decisions(
                checkpoint.decision_rule,
                decoding=getattr(config.task, "decoding", None),
                refit=refit_of(checkpoint.metadata),
            ),
        ],
        "Data": _data(source, facts),
        "Figures": _figures(facts, headline, refit=refit_of(checkpoint.metadata)),
        "Intended use and limits": [_LIMITS],
        "Licence": [_license(license_id)],
        "Versions": [", ".join(f"{name} {number}" for name, number in versions.items() if number)],
        "Citation": [CITATION],
    }
    question = _QUESTIONS.get(checkpoint.task, f"the task {checkpoint.task}")
    lines = [
        f"# {name}",
        f"This model judges {question}. {_UNITS[config.data.unit]} Architecture: "
        f"{config.model.architecture}, up to {config.model.max_length} tokens at once. Trained with PSY "
        f"Agents NO-AUG without data augmentation, step {checkpoint.step}.",
    ]
    for title, paragraphs in sections.items():
        lines += [f"## {title}", *paragraphs]
    body = "\n\n".join(lines)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a Markdown table; the first one is the header."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    rule = ["---"] * len(rows[0])
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])


def _criteria_table(criteria: Sequence[Criterion], rule: Mapping[str, Any]) -> str:
    rows = [["id", "name", "text that the model reads"]]
    rows += [[c.criterion_id, c.name, c.text] for c in criteria]
    if thresholds := rule.get("thresholds"):
        rows[0].append("threshold")
        for row in rows[1:]:
            row.append(f"{thresholds[row[0]]:.4f}")
    return table(rows)


def _decisions(
    rule: Mapping[str, Any], *, decoding: str | None, refit: Mapping[str, Any] | None
) -> str:
    """Say how outputs become decisions; settings.json has the numbers.

    Args:
        rule: the decision rule.
        decoding: of the task joint.
        refit: what the rule was fitted on, where that is not val.
    """
    fitted_on = "the validation split"
    parts = []
    if refit is not None:
        fitted_on = "out-of-fold predictions of the training and validation posts"
        parts.append(describe(refit))
    if rule.get("thresholds"):
        parts.append(
            "The probability that a criterion is met is the sigmoid of the log odds; met is what is at "
            f"or above the threshold, which was fitted on {fitted_on}."
        )
    if rule.get("calibration"):
        parts.append(
            "Calibrated log odds are `slope` times the log odds plus the criterion's intercept "
            "(`calibration` in settings.json)."
        )
    if "null_score_diff_threshold" in rule:
        parts.append(
            "The score of a span is its start logit plus its end logit, minus both of the first token. "
            "Evidence is what has a score of at least minus `null_score_diff_threshold`, does not "
            "overlap a better span and is not longer than `max_answer_length` tokens (settings.json)."
        )
    if decoding == "consistent":
        parts.append(
            "Whatever its score, a pair that is decided unmet has no evidence, and one that is decided "
            "met has at least its best span."
        )
    if "posts" in rule:
        parts.append(
            "A whole post has the probability of its most probable sentence; `posts` in settings.json "
            "are its thresholds and its calibration."
        )
    return " ".join(parts)


def _data(source: Source, facts: RunFacts) -> list[str]:
    corpus = source.shared.metadata.get("fingerprints", {}).get("corpus", "not known")
    texts = [
        f"Corpus `{source.config.data.name}`, fingerprint `{corpus}`. Splits share no author, where "
        "authors are known."
    ]
    if not facts.sizes:
        return [
            *texts,
            "The sizes of the splits are not known: this checkpoint came without its run.",
        ]
    rows = [["split", "posts", "pairs", "met pairs"]]
    learned_val = refit_of(source.shared.metadata) is not None
    for split, size in facts.sizes.items():
        met = sum(size.get("positives", {}).values())
        shown = "train and val" if learned_val and split == "train" else split
        rows.append([shown, *(f"{number:,}" for number in (size["posts"], size["pairs"], met))])
    return [*texts, table(rows)]


def _figures(
    facts: RunFacts, headline: Sequence[str], *, refit: Mapping[str, Any] | None
) -> list[str]:
    paragraphs = []
    for split in ("test", "val"):
        if rows := _rows(facts.figures, split, headline):
            paragraphs += [f"On {split}:", table([["system", *headline], *rows])]
            paragraphs += _comparison(facts.figures, split, headline)
            if facts.figures.get(f"{split}/annotated_sentences_only"):
                paragraphs.append(
                    "Annotated sentences only: false alarms on others are not counted."
                )
    if not paragraphs:
        paragraphs = ["None are known."]
    else:
        paragraphs.append(
            "`model` is this one, the others are baselines. In brackets are 95 % intervals, where there "
            "are enough posts for one."
        )
        if refit is None:
            paragraphs[-1] += (
                " Thresholds, calibration and the choice of the checkpoint were made on val, so figures "
                "on val are too good."
            )
    if refit is not None:
        paragraphs.append("Training has learned val, so there are no figures on it.")
    elif not facts.is_whole:
        paragraphs.append(
            "These are the figures of the training on this checkpoint, without intervals and baselines."
        )
    if not any(key.startswith("test/") for key in facts.figures):
        paragraphs.append("There are no figures on test.")
    times = facts.n_test_evaluations
    known = "not known" if times is None else f"{times}"
    paragraphs.append(f"Evaluations of this run's models on test so far: {known}.")
    return paragraphs


def _rows(figures: Mapping[str, Any], split: str, headline: Sequence[str]) -> list[list[str]]:
    """Return a row for the model and each baseline that has a figure."""
    prefix = f"{split}/"
    names = [match[1] for key in figures if (match := _BASELINE.match(key.removeprefix(prefix)))]
    systems = {"model": prefix}
    systems |= {name: f"{prefix}baseline_{name}/" for name in names}
    rows = [
        [system, *(_figure(figures, f"{start}{metric}") for metric in headline)]
        for system, start in systems.items()
    ]
    return [row for row in rows if any(cell != "-" for cell in row[1:])]


def _comparison(figures: Mapping[str, Any], split: str, headline: Sequence[str]) -> list[str]:
    """Say which baselines the model is shown to be better than, by each metric with such figures."""
    lines = []
    own = {
        key.removeprefix(f"{split}/"): value
        for key, value in figures.items()
        if key.startswith(f"{split}/")
    }
    for metric in headline:
        end = f"{metric}_gain_ci_low"
        names = [
            match[1] for key in own if (match := _BASELINE.match(key)) and key.endswith(f"/{end}")
        ]
        if names:
            shown = {name: name for name in names}
            lines.append(beaten_line(own, shown, key=metric, name=metric).replace("\n", " "))
    return lines


def _figure(figures: Mapping[str, Any], key: str) -> str:
    """Return a figure with its interval, without one where it was not computed; `-` without a figure."""
    if figures.get(key) is None:
        return "-"
    has_interval = f"{key}_ci_low" in figures
    return with_interval(figures, key) if has_interval else format_value(figures[key])


def _eval_results(
    config: TrainConfig, facts: RunFacts, headline: Sequence[str]
) -> Iterator[EvalResult]:
    """Yield the headline figures for the Hub: those on test or, without them, on val."""
    split = "test" if any(key.startswith("test/") for key in facts.figures) else "val"
    for metric in headline:
        value = facts.figures.get(f"{split}/{metric}")
        if value is not None:
            yield EvalResult(
                task_type="text-classification",
                dataset_type=config.data.name,
                dataset_name=config.data.name,
                dataset_split=split,
                metric_type=metric,
                metric_name=metric,
                metric_value=round(float(value), 4),
            )


def _base_model(sources: Iterable[tuple[str, str | None]]) -> list[str] | None:
    """Return the names of the pretrained encoders on the Hub; None where they are not from there."""
    names = [
        f"{_BUNDLED_FROM}/{name.removeprefix(BUNDLED_PREFIX)}"
        if name.startswith(BUNDLED_PREFIX)
        else name
        for name in dict.fromkeys(name for name, _ in sources)
    ]
    return [name for name in names if _HUB_NAME.fullmatch(name)] or None


def _license(license_id: str) -> str:
    if license_id == UNKNOWN_LICENSE:
        return (
            "Not told. The licence of the pretrained encoder and the terms of the training data apply; "
            "ask who shared this model before using it."
        )
    return f"{license_id}. The terms of the training data may restrict its use further."
