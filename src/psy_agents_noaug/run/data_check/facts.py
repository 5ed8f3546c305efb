"""What a training would find in a corpus, and how long it would take."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from psy_agents_noaug.config.schema import DataCheckConfig, TrainConfig
from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE, Criterion
from psy_agents_noaug.data.examples import HELD_OUT, Example
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.errors import ConfigError, DataError, PsyAgentsError
from psy_agents_noaug.metrics.expected import ExpectedInterval, expected_intervals
from psy_agents_noaug.models.encoder import Encoder, check_positions, load_encoder
from psy_agents_noaug.run.checks import check_monitor, training_warnings
from psy_agents_noaug.run.data import PreparedData, label_posts, prepare_data
from psy_agents_noaug.run.data_check.lengths import EncoderLengths, encoder_lengths
from psy_agents_noaug.run.data_check.salvage import Salvage, salvage
from psy_agents_noaug.run.data_check.timing import TrainingTime, training_time
from psy_agents_noaug.run.hardware import prepare_hardware
from psy_agents_noaug.tasks.base import Encoders, Task, TaskInputs
from psy_agents_noaug.tasks.build import build_task, load_encoders
from psy_agents_noaug.tasks.registry import task_class
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.utils.out_of_memory import explained_memory_errors
from psy_agents_noaug.utils.private_errors import without_texts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ValidFacts:
    """What is known of a corpus without faults.

    Args:
        data: as a training has it.
        report: what alignment.json of a training would hold.
        n_crossing: texts of train that val or test has too.
        n_groups: authors, or posts where they are not known.
        n_annotators: 0: the annotations do not say who made them.
        n_paired: posts that have pairs.
        met_together: of these, that meet both criteria; met by it, on the diagonal;
            `[criteria, criteria]`.
        n_met: number of these by how many criteria they meet.
        expected: figures of val and test by split and key; empty: the task has no F1 of labels.
    """

    data: PreparedData
    report: Mapping[str, Any]
    n_crossing: int
    n_groups: int
    n_annotators: int
    n_paired: int
    met_together: np.ndarray
    n_met: Mapping[int, int]
    expected: Mapping[str, Mapping[str, ExpectedInterval]]


@dataclass(frozen=True, eq=False)
class DataFacts:
    """What is known of a corpus.

    Args:
        config: of the training.
        settings: of the check.
        overrides: that both came from.
        faults: each a message with all faults of a kind; a training would be refused.
        notes: what could not be found out, and why.
        warnings: of a training.
        valid: None: the corpus has faults.
        readable: what can be read of it then.
        lengths: of the judged texts, by encoder; the configured ones first.
        time: None: not measured.
    """

    config: TrainConfig
    settings: DataCheckConfig
    overrides: Sequence[str]
    faults: Sequence[str]
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    valid: ValidFacts | None = None
    readable: Salvage | None = None
    lengths: Sequence[EncoderLengths] = field(default_factory=tuple)
    time: TrainingTime | None = None


@without_texts()
@explained_memory_errors()
def check(config: TrainConfig, settings: DataCheckConfig, overrides: Sequence[str]) -> DataFacts:
    """Find out what a training would find, without training.

    Raises:
        ConfigError: a setting contradicts another or this machine; faults of the data are returned.
    """
    if config.refit is not None:
        raise ConfigError(
            "`refit` trains on val too, which a check of the data looks at: leave it out."
        )
    hardware = prepare_hardware(config)
    faults: list[str] = []
    notes: list[str] = []
    data, readable = None, None
    try:
        data = prepare_data(config)
    except DataError as error:
        faults.append(str(error))
        readable = salvage(config.data)
        faults += [fault for fault in readable.faults if fault not in faults]
    encoders: Encoders = {}
    try:
        encoders = load_encoders(config)
    except ConfigError as error:
        faults.append(str(error))
    lengths = _lengths(config, settings, encoders, data, readable, faults, notes)
    # Built after the tokens are counted: it may change how the encoders run.
    task = _task(config, hardware, encoders, data, faults)
    time = None
    if settings.time and task is not None and not faults:
        time = _time(config, task, hardware, notes)
    return DataFacts(
        config,
        settings,
        overrides,
        faults,
        notes,
        warnings=[*data.all_warnings(), *training_warnings(config, data)] if data else [],
        valid=_valid(config, settings, data) if data is not None else None,
        readable=readable,
        lengths=lengths,
        time=time,
    )


def _task(
    config: TrainConfig,
    hardware: Hardware,
    encoders: Encoders,
    data: PreparedData | None,
    faults: list[str],
) -> Task | None:
    """Build the task as a training does; what it refuses is added to the faults."""
    if data is None or not encoders:
        return None
    examples = {name: data.examples[name] for name in ("train", "val")}
    empty = [name for name, own in examples.items() if not own]
    if empty:
        faults.append(f"No pair is in {' and none in '.join(empty)}: see the labels of the pairs.")
        return None
    try:
        inputs = TaskInputs(encoders, data.criteria, examples, hardware.max_tokens_held)
        task = build_task(config, inputs)
        task.check_training_examples()
        check_monitor(config.training.monitor, task.evaluation)
    except (ConfigError, DataError) as error:
        if str(error) not in faults:
            faults.append(str(error))
        return None
    return task


def _time(
    config: TrainConfig, task: Task, hardware: Hardware, notes: list[str]
) -> TrainingTime | None:
    """Measure how long a training takes; what prevents it is added to the notes."""
    try:
        with explained_memory_errors():
            return training_time(config, task, hardware)
    except PsyAgentsError as error:
        notes.append(f"The time of a training was not measured. {error}")
        return None


def _lengths(
    config: TrainConfig,
    settings: DataCheckConfig,
    encoders: Encoders,
    data: PreparedData | None,
    readable: Salvage | None,
    faults: list[str],
    notes: list[str],
) -> list[EncoderLengths]:
    """Count the tokens of the judged texts, or of the readable posts, for each encoder."""
    texts, spans = judged_texts(data, readable.posts if readable else ())
    if not texts:
        return []
    criteria: Sequence[Criterion] = data.criteria if data else MAJOR_DEPRESSIVE_EPISODE
    reads_texts = config.model.architecture == "label_attention"
    first = [None] if reads_texts else [criterion.text for criterion in criteria]
    sources = task_class(config.task.name).encoder_sources(config.model)
    found: dict[str, EncoderLengths] = {}
    max_length = config.model.max_length

    def count(name: str, encoder: Encoder) -> None:
        if name not in found:
            found[name] = encoder_lengths(
                name, encoder, texts, spans, first=first, max_length=max_length
            )

    for part, encoder in encoders.items():
        try:
            check_positions(max_length, encoder)
            count(sources[part][0], encoder)
        except ConfigError as error:
            faults.append(str(error))
    for name in settings.encoders:
        try:
            count(name, load_encoder(name))
        except ConfigError as error:
            notes.append(f"The tokens of {name} were not counted. {error}")
    return list(found.values())


def judged_texts(
    data: PreparedData | None, posts: Iterable[Post]
) -> tuple[dict[str, str], dict[str, list[Span]]]:
    """Return the judged texts and the evidence in them, by the identifier of the text.

    Args:
        data: None: the texts are those of `posts`.
        posts: as far as they can be read.
    """
    if data is None:
        return {post.post_id: post.text for post in posts}, {}
    texts: dict[str, str] = {}
    spans: dict[str, list[Span]] = defaultdict(list)
    for example in (one for own in data.examples.values() for one in own):
        texts.setdefault(example.text_id, example.text)
        if example.evidence:
            spans[example.text_id] += example.evidence
    return texts, spans


def _valid(config: TrainConfig, settings: DataCheckConfig, data: PreparedData) -> ValidFacts:
    ids = [criterion.criterion_id for criterion in data.criteria]
    position = {one: number for number, one in enumerate(ids)}
    pairs = [pair for name, own in data.examples.items() if name != HELD_OUT for pair in own]
    met_in: dict[str, set[str]] = {pair.post_id: set() for pair in pairs}
    # A post can meet a criterion of which no sentence is known to show it.
    labelled = pairs if config.data.unit == "post" else label_posts(config, data.corpus)
    for pair in labelled:
        if pair.label > 0 and pair.post_id in met_in and pair.criterion_id in position:
            met_in[pair.post_id].add(pair.criterion_id)
    met = np.zeros((len(met_in), len(ids)), dtype=np.int64)
    for row, own in enumerate(met_in.values()):
        met[row, [position[one] for one in own]] = 1
    annotators = {annotation.annotator_id for annotation in data.corpus.annotations} - {None}
    return ValidFacts(
        data,
        report=data.report(),
        n_crossing=len(data.duplicates.post_ids("train")),
        n_groups=len({post.group_id for post in data.corpus.posts}),
        n_annotators=len(annotators),
        n_paired=len(met_in),
        met_together=met.T @ met,
        n_met=dict(sorted(Counter(met.sum(axis=1).tolist()).items())),
        expected=_expected(config, settings, data),
    )


def _expected(
    config: TrainConfig, settings: DataCheckConfig, data: PreparedData
) -> dict[str, dict[str, ExpectedInterval]]:
    """Return the intervals to expect on val and test."""
    if "f1_macro" not in config.task.headline_metrics:
        return {}
    prevalences = _prevalences(data)
    found = {}
    for split in ("val", "test"):
        pairs = [e for e in data.examples.get(split, []) if e.criterion_id in prevalences]
        if pairs:
            found[split] = expected_intervals(
                np.array([pair.label > 0 for pair in pairs], dtype=np.int64),
                np.array([pair.criterion_id for pair in pairs]),
                np.array([pair.group_id for pair in pairs]),
                prevalences=prevalences,
                auroc=settings.assumed_auroc,
            )
    return found


def _prevalences(data: PreparedData) -> dict[str, float]:
    """Return the share of met pairs of each criterion that has met and unmet pairs."""
    wanted = {criterion.criterion_id for criterion in data.criteria}
    labels: dict[str, list[bool]] = {criterion.criterion_id: [] for criterion in data.criteria}
    examples: Iterable[Example] = (one for own in data.examples.values() for one in own)
    for example in examples:
        if example.criterion_id in wanted:
            labels[example.criterion_id].append(example.label > 0)
    shares = {one: float(np.mean(own)) for one, own in labels.items() if own}
    return {one: share for one, share in shares.items() if 0 < share < 1}
