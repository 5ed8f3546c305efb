"""Every setting, its type and its bounds. The values are in `configs/`.

Unknown keys are refused and types are strict: `training.epochs=2.5` and `amp: yes` are errors.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from psy_agents_noaug.config.overrides import hydra_literal
from psy_agents_noaug.utils.shards import Shard

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Checkpoints = str | Annotated[list[str], Field(min_length=1)]  # several are an ensemble
Architecture = Literal["cross_encoder", "label_attention"]
ARCHITECTURES = get_args(Architecture)
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"  # of a folder
Seed = Annotated[int, Field(ge=0, lt=2**32)]
TableColumns = dict[Literal["posts", "annotations", "criteria"], dict[str, str]]


class Section(BaseModel):
    """A group of settings: immutable, strict, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where the corpus is stored and how pairs are made from it (`configs/data/`)."""

    name: str
    source: Literal["bundled", "files", "hub"]
    dir: str | None = None
    posts: str | None = None
    annotations: str | None = None
    criteria: str | None = None
    splits: str | None = None
    repo: str | None = None
    revision: str | None = None
    columns: TableColumns = {}
    ignored_criteria: list[str] = []
    held_out_criteria: list[str] = []
    unit: Literal["post", "sentence"]
    # The default is for configurations of 0.2.0 and earlier, which knew annotated sentences alone.
    sentences: Literal["all", "annotated"] = "annotated"
    unannotated_pairs: Literal["negative", "drop"]
    negatives: Literal["all"] | Annotated[float, Field(gt=0.0)]
    division: Literal["stratified", "random"] = "stratified"
    split_fractions: Annotated[list[float], Field(min_length=3, max_length=3)]
    split_seed: Annotated[int, Field(ge=0)]
    fuzzy_threshold: Annotated[float, Field(ge=0.0, le=100.0)]
    offset_unit: Literal["code_points", "utf16", "utf8_bytes", "lf", "crlf"] = "code_points"
    inclusive_ends: bool = False
    near_duplicate_threshold: Annotated[float, Field(gt=0.0, le=1.0)]
    duplicates: Literal["warn", "drop_from_train"] = "warn"
    subgroups: list[str] = []
    corrections: str | None = None
    merge: str | None = None
    soft_labels: bool = False
    token_cache: str = "auto"  # noqa: S105  (a folder)

    @property
    def judges_annotated_sentences_only(self) -> bool:
        """Whether no pair is about an ordinary sentence, where a model could raise a false alarm."""
        is_partial = self.sentences == "annotated" or self.unannotated_pairs == "drop"
        return self.unit == "sentence" and is_partial

    @model_validator(mode="after")
    def _names_its_source(self) -> "DataConfig":
        needed = {"bundled": (), "files": ("posts", "annotations"), "hub": ("repo",)}[self.source]
        missing = [key for key in needed if getattr(self, key) is None]
        if missing:
            keys = ", ".join(f"`data.{key}`" for key in missing)
            raise ValueError(f"{keys} must be given for `data.source={self.source}`.")
        unused = {"bundled": ("dir", "repo", "revision"), "files": ("repo", "revision"), "hub": ()}
        for key in unused[self.source]:
            if getattr(self, key) is not None:
                raise ValueError(
                    f"`data.{key}` is not read by `data={self.name}`; for your own files add "
                    "data=redsm5 or data=tables."
                )
        if self.merge and not re.fullmatch(r"any|majority|unanimous|annotator[:=].+", self.merge):
            raise ValueError(
                "`data.merge` must be any, majority, unanimous or annotator:ID, but is "
                f"{self.merge} instead."
            )
        if self.soft_labels and self.merge is None:
            raise ValueError(
                "`data.soft_labels` needs `data.merge`, which says what the model is evaluated against."
            )
        if self.merge is not None and self.corrections is not None:
            raise ValueError(
                "`data.merge` counts votes, which `data.corrections` overrules: give one of them. Keep "
                "adjudicated labels as rows with an annotator_id of their own "
                "(`data.merge=annotator:ID`)."
            )
        if abs(sum(self.split_fractions) - 1.0) > 1e-6 or min(self.split_fractions) <= 0.0:
            raise ValueError(
                "`data.split_fractions` must be three positive numbers that sum to 1, "
                f"but is {self.split_fractions} instead."
            )
        return self


class LoraConfig(Section):
    """Low-rank adapters on the encoder (Hu et al. 2022), through `peft`.

    Args:
        rank: of the adapters.
        alpha: adapters are scaled by `alpha / rank`.
        dropout: before the adapters.
        target_modules: names of the layers that get one; all-linear: all linear ones.
    """

    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    dropout: Fraction = 0.0
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class ModelConfig(Section):
    """The encoder and the head (`configs/model/`)."""

    pretrained_model: str
    revision: str | None = None
    # The default is for configurations of 0.2.0 and earlier.
    architecture: Architecture = "cross_encoder"
    criterion_vectors: Literal["learned", "encoded"] = "encoded"
    max_length: Annotated[int, Field(ge=8)]
    criteria_encoder: str | None = None
    evidence_encoder: str | None = None
    share_encoder: bool = False
    pooling: Literal["cls", "mean", "max", "attention"]
    head_layers: Positive
    head_width: Positive | None
    head_dropout: Fraction
    encoder_dropout: Fraction | None
    learning_rate: Annotated[float, Field(gt=0.0)]
    lora: LoraConfig | None


class EarlyStoppingConfig(Section):
    """Stop after `patience` evaluations without an improvement of more than `min_delta`."""

    patience: Positive
    min_delta: Annotated[float, Field(ge=0.0)] = 0.0


class TrainingConfig(Section):
    """Optimisation, precision and hardware (`configs/training/`)."""

    epochs: Positive
    max_steps: Positive | None
    train_batch_size: Positive
    eval_batch_size: Positive
    micro_batch_size: Positive | None
    micro_batch_tokens: Positive | None
    learning_rate: Annotated[float, Field(gt=0.0)]
    head_learning_rate: Annotated[float, Field(gt=0.0)] | None
    weight_decay: Annotated[float, Field(ge=0.0)]
    adam_beta1: Fraction
    adam_beta2: Fraction
    adam_epsilon: Annotated[float, Field(gt=0.0)]
    max_grad_norm: Annotated[float, Field(gt=0.0)] | None
    scheduler: str
    warmup_ratio: Fraction
    monitor: str
    early_stopping: EarlyStoppingConfig | None
    eval_steps: Positive | None
    save_steps: Positive | None
    device: str
    amp: Literal["off", "fp16", "bf16", "auto"]
    deterministic: bool
    deterministic_warn_only: bool
    cudnn_benchmark: bool
    tf32: bool
    execution: Literal["auto", "packed", "padded"]
    compile: bool
    gradient_checkpointing: bool
    num_threads: Positive | None
    keep_freed_memory: bool | None
    num_workers: Annotated[int, Field(ge=0)] | None
    pin_memory: bool | None
    prefetch_factor: Positive | None
    loader_timeout: Annotated[float, Field(gt=0.0)] | None = 300.0

    @model_validator(mode="after")
    def _is_consistent(self) -> "TrainingConfig":
        if self.deterministic and self.cudnn_benchmark:
            raise ValueError(
                "`training.cudnn_benchmark` picks kernels by timing, which `training.deterministic` "
                "forbids: turn one of them off."
            )
        return self


class TrackingConfig(Section):
    """Where metrics are logged besides the run directory (`configs/tracking/`)."""

    name: Literal["mlflow", "none"]
    uri: str | None = None
    experiment: str | None = None
    system_metrics: bool = True
    patience_seconds: Annotated[float, Field(ge=0.0)] = 30.0

    @model_validator(mode="after")
    def _keeps_passwords_out(self) -> "TrackingConfig":
        if self.uri is not None and urlsplit(self.uri).password is not None:
            raise ValueError(
                "`tracking.uri` must not hold a password, because it is written into config.yaml and "
                "checkpoints. Use MLFLOW_TRACKING_PASSWORD, or PGPASSWORD or ~/.pgpass for PostgreSQL."
            )
        return self


class PublishedConfig(Section):
    """Figures that somebody has published for a protocol.

    Args:
        system: that they are of.
        figures: by their keys, without the protocol.
        source: where they stand, and on which texts.
    """

    system: str
    figures: dict[str, float]
    source: str


class ProtocolConfig(Section):
    """A published evaluation (`configs/protocol/`): its settings, and figures that stand beside ours.

    Args:
        name: in the keys of the figures, `protocol/<name>/...`; none: there is no protocol.
        figures: their kind, `metrics.multilabel` or `metrics.ranking`; None: there are none.
        threshold: of multilabel: the probability above which a label applies.
        none_label: of multilabel: the name of the label of texts without another; None: no such label.
        fixes: the settings, nested, that make the protocol. Others than these are refused.
        notes: what a reader must know to compare, one sentence each.
        published: figures of other systems.
    """

    name: Annotated[str, Field(pattern=rf"^{_NAME}$")] = "none"
    figures: Literal["multilabel", "ranking"] | None = None
    threshold: Share = 0.5
    none_label: str | None = None
    fixes: dict[str, Any] = {}
    notes: list[str] = []
    published: list[PublishedConfig] = []

    @property
    def divides(self) -> bool:
        """Whether the protocol says how posts are divided into train, val and test."""
        return "division" in self.fixes.get("data", {})

    def conflicts(self, settings: "TrainConfig") -> list[str]:
        """Return the settings that are not those of the protocol, one sentence each."""
        if self.figures is not None and not settings.task.has_protocols:
            return [
                f"`protocol={self.name}` is about labels, which the task {settings.task.name} does not "
                "predict; use task=criteria or task=joint."
            ]
        return [
            f"`{key}` must be {hydra_literal(value)} under protocol={self.name}, but is "
            f"{hydra_literal(now)}; leave it out, or choose protocol=none."
            for key, value, now in _pairs_of_leaves(self.fixes, settings.model_dump())
            if value != now
        ]


NO_PROTOCOL = ProtocolConfig()


def _pairs_of_leaves(
    values: Mapping[str, Any], others: Any, prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted key of each leaf of `values`, its value, and that in `others`; None: absent."""
    for key, value in values.items():
        other = others.get(key) if isinstance(others, Mapping) else None
        if isinstance(value, Mapping):
            yield from _pairs_of_leaves(value, other, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value, other


class TaskSettings(Section):
    """The section `task`. Every task derives its own settings model from this one.

    Attributes:
        headline_metrics: the metrics by which results of the task are compared, the main one first.
        architectures: the values of `model.architecture` that the task has.
        has_soft_labels: whether the task can be trained on shares (`data.soft_labels`).
        has_protocols: whether the task predicts labels, which `protocol` is about.
        name: of the task.
    """

    headline_metrics: ClassVar[tuple[str, ...]] = ()
    architectures: ClassVar[tuple[str, ...]] = ("cross_encoder",)
    has_soft_labels: ClassVar[bool] = False
    has_protocols: ClassVar[bool] = False

    name: str

    def conflicts(self, data: DataConfig, model: ModelConfig) -> list[str]:
        """Return the settings of other sections that conflict with the task, one sentence each."""
        if model.criteria_encoder or model.evidence_encoder or model.share_encoder:
            return [
                "`model.criteria_encoder`, `model.evidence_encoder` and `model.share_encoder` belong "
                f"to the joint task; for {self.name} set `model.pretrained_model`."
            ]
        return []


class TrainConfig(Section):
    """All settings of a training run."""

    task: TaskSettings
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    tracking: TrackingConfig
    seed: Seed
    output_dir: str
    # With a folder before it, a run is one of several, as those of `psy-agents cv` are.
    run_name: Annotated[str, Field(pattern=rf"^({_NAME}/)?{_NAME}$")] | None
    resume: str | None
    best_config: str | None
    report: bool = True
    refit: Literal["train+val"] | None = None
    protocol: ProtocolConfig = NO_PROTOCOL

    @model_validator(mode="after")
    def _can_name_a_folder(self) -> "TrainConfig":
        # Surrogates stand for bytes that are no UTF-8, which config.yaml could not hold.
        if "\0" in self.output_dir or re.search("[\ud800-\udfff]", self.output_dir):
            raise ValueError(
                "`output_dir` must be in UTF-8 and without NUL characters, but is "
                f"{self.output_dir!r} instead."
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        conflicts = self.task.conflicts(self.data, self.model) + self.protocol.conflicts(self)
        if self.data.soft_labels and not self.task.has_soft_labels:
            conflicts.append(f"`data.soft_labels` is no target of the {self.task.name} task.")
        model = self.model
        if model.architecture not in self.task.architectures:
            conflicts.append(
                f"`model.architecture` must be {' or '.join(self.task.architectures)} for the "
                f"{self.task.name} task, but is {model.architecture} instead."
            )
        if (
            model.architecture == "label_attention"
            and model.criterion_vectors == "learned"
            and self.data.held_out_criteria
        ):
            conflicts.append(
                "`model.criterion_vectors=learned` has no vector for `data.held_out_criteria`; use "
                "`model.criterion_vectors=encoded`."
            )
        if conflicts:
            raise ValueError("\n  - ".join(conflicts))
        return self


@functools.cache
def train_config_model(settings: type[TaskSettings]) -> type[TrainConfig]:
    """Return a `TrainConfig` whose section `task` is a `settings`."""
    return create_model("TrainConfig", __base__=TrainConfig, task=(settings, ...))


class SeriesConfig(Section):
    """Settings of several trainings of one configuration (`configs/_series.yaml`), besides its own.

    Args:
        seeds: one training each; None: a single training.
        workers: processes that train at the same time.
        reports: whether this process writes the results; local workers but the first do not.
    """

    seeds: Annotated[list[Seed], Field(min_length=1)] | None
    workers: Positive
    reports: bool

    @model_validator(mode="after")
    def _seeds_differ(self) -> "SeriesConfig":
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError("`seeds` must differ from each other.")
        return self


class FoldsConfig(SeriesConfig):
    """Settings of a series of trainings, besides those of a training (`configs/cv.yaml`, `train.yaml`).

    Args:
        folds: their number, or a file of `data.folds`.
    """

    folds: Annotated[int, Field(ge=2)] | str


@functools.cache
def series_config_model(
    series: type[SeriesConfig], settings: type[TaskSettings]
) -> type[SeriesConfig]:
    """Return a `series` that has all settings of a training of the task with `settings` too."""
    bases: Any = (series, train_config_model(settings))
    model: type[SeriesConfig] = create_model("Series", __base__=bases)
    return model


class DataCheckConfig(Section):
    """Settings of a check of the data (`configs/data_check.yaml`), besides those of a training.

    Args:
        with_text: whether the page shows doubtful evidence in the words of the posts.
        time: whether some updates are made, to tell how long a training takes.
        encoders: further encoders whose tokens are counted.
        assumed_auroc: of the model whose intervals are expected.
        output: folder of the page; None: `data/<data.name>` in `output_dir`.
    """

    with_text: bool
    time: bool
    encoders: list[str]
    assumed_auroc: Annotated[float, Field(gt=0.5, lt=1.0)]
    output: str | None


@functools.cache
def data_check_config_model(settings: type[TaskSettings]) -> type[DataCheckConfig]:
    """Return a `DataCheckConfig` that has all settings of a training of the task too."""
    bases: Any = (DataCheckConfig, train_config_model(settings))
    model: type[DataCheckConfig] = create_model("DataCheck", __base__=bases)
    return model


class EvaluateConfig(Section):
    """Settings of an evaluation, besides the configuration in the checkpoint.

    Args:
        checkpoint: a checkpoint or a run; several are an ensemble.
        split: to be evaluated.
        prevalence: also report predictive values where each criterion is met so often.
    """

    checkpoint: Checkpoints
    split: Literal["train", "val", "test", "all"]
    prevalence: Share | None = None


class PostsConfig(Section):
    """The posts to predict: a table as `configs/data/` describe it, without annotations."""

    source: Literal["bundled", "files"]
    dir: str | None = None
    posts: str | Annotated[list[str], Field(min_length=1)]
    columns: TableColumns = {}


class PredictTrainingConfig(Section):
    """What a prediction may do in another way than the training; None: as there."""

    device: str | None = None
    amp: Literal["off", "fp16", "bf16", "auto"] | None = None
    eval_batch_size: Positive | None = None
    micro_batch_tokens: Positive | None = None
    execution: Literal["auto", "packed", "padded"] | None = None
    compile: bool | None = None
    num_threads: Positive | None = None


class PredictModelConfig(Section):
    """As `PredictTrainingConfig`."""

    max_length: Annotated[int, Field(ge=8)] | None = None


class PredictTaskConfig(Section):
    """As `PredictTrainingConfig`."""

    decoding: Literal["independent", "consistent"] | None = None


class ScoringConfig(Section):
    """How a trained model judges posts.

    Args:
        criteria: ids, of the training or of `criteria_file`; None: all of the file, or of the training.
        criteria_file: a table of criteria, like that of a corpus.
        threshold: the probability from which a criterion counts as met, for all criteria or by id; None:
            those that were fitted on val.
        prevalence: how often a criterion is met among these posts, for all criteria or by id; adds the
            column `probability_at_prevalence`, and changes no decision.
        with_text: add the column `text`, of the post.
        rows: of a model that judges sentences: a row for each post and criterion, with the probability
            of its most probable sentence; or for each sentence and criterion.
    """

    criteria: Annotated[list[str], Field(min_length=1)] | None = None
    criteria_file: str | None = None
    threshold: Share | dict[str, Share] | None = None
    prevalence: Share | dict[str, Share] | None = None
    with_text: bool = False
    rows: Literal["post", "sentence"] = "post"


def _is_shard(value: str) -> str:
    try:
        Shard.parse(value)
    except ValueError as error:
        raise ValueError(f"`shard` {error}.") from None
    return value


class PredictConfig(ScoringConfig):
    """Settings of a prediction (`configs/predict.yaml`)."""

    checkpoint: Checkpoints
    data: PostsConfig
    output: str | None = None
    skip: Annotated[int, Field(ge=0)] = 0
    posts_per_chunk: Positive
    unit_posts: Positive = 5000
    shard: Annotated[str, AfterValidator(_is_shard)] | None = None
    engine: Literal["local", "ray"] = "local"
    workers: Positive | None = None
    training: PredictTrainingConfig = PredictTrainingConfig()
    model: PredictModelConfig = PredictModelConfig()
    task: PredictTaskConfig = PredictTaskConfig()

    @property
    def is_in_units(self) -> bool:
        """Whether `output` is a folder, which the posts are predicted into in units."""
        output = self.output or "-"
        return output.endswith("/") or (output != "-" and not PurePath(output).suffix)

    @model_validator(mode="after")
    def _fits_its_output(self) -> "PredictConfig":
        posts = self.data.posts
        faults = []
        if self.is_in_units:
            if self.skip:
                faults.append(
                    "`skip` is of one file; what is in the folder `output` is not done again"
                )
            if posts == "-":
                faults.append("`data.posts` must be files, as standard input cannot be read again")
            if self.workers and self.engine == "local":
                faults.append(
                    "`workers` is of `engine=ray`; without it, start a process for each `shard`"
                )
        else:
            if self.shard or self.engine != "local" or self.workers:
                faults.append(
                    "`shard`, `engine` and `workers` need a folder as `output`: output=FOLDER"
                )
            if isinstance(posts, list) or re.search(r"[*?]", posts):
                faults.append(
                    "`data.posts` of several files needs a folder as `output`: output=FOLDER"
                )
        if faults:
            raise ValueError(".\n  - ".join(faults) + ".")
        return self

    @property
    def overrides(self) -> dict[str, Any]:
        """The settings that replace the checkpoint's, by dotted keys."""
        return {
            f"{name}.{key}": value
            for name in ("training", "model", "task")
            for key, value in getattr(self, name).model_dump(exclude_none=True).items()
        }


class MergeConfig(Section):
    """Settings of `psy-agents merge`.

    Args:
        output: the file: .parquet.
        check_posts: read the posts again, and compare them with those that were predicted.
    """

    output: str
    check_posts: bool = True


class TrecConfig(Section):
    """Settings of `psy-agents trec`.

    Attributes:
        output: the TREC run to write; None: none is written.
    """

    output: str | None = None


class CompareConfig(Section):
    """Settings of `psy-agents compare`.

    Attributes:
        split: val or test; all: a corpus that was evaluated as a whole.
        output: the folder of the results; None: `outputs/comparisons/<date and time>`.
    """

    split: Literal["val", "test", "all"] = "test"
    output: str | None = None


class ReportConfig(Section):
    """Settings of `psy-agents report`.

    Args:
        with_text: also write errors.html, which shows posts.
    """

    with_text: bool = False


class ImportConfig(Section):
    """Settings of `psy-agents import` (`configs/import.yaml`)."""

    map: str | dict[str, Any] | None
    criteria: str | None
    output: str | None
    format: Literal["parquet", "csv"]
    spans_imply_label: bool | None
    empty: Literal["negative", "leave_out"] | None
    negatives: Literal["auto", "explicit", "none"]
    annotators: Annotated[list[str | int], Field(min_length=1)] | None
    ground_truth_only: bool
    with_predictions: bool
    text: str | None
    id: str | None
    group: str | None
    fields: list[str] | None
    offset_unit: Literal["auto", "code_points", "utf16", "utf8_bytes", "lf", "crlf"]
    faulty: Literal["stop", "leave_out"]


class ExportConfig(Section):
    """Settings of an export (`configs/export.yaml`): of a checkpoint, or of predictions."""

    checkpoint: str | None
    predictions: str | None = None
    format: Literal["huggingface", "onnx", "bundle", "labelstudio"]
    output: str | None = None
    split: Literal["train", "val", "test", "all"] = "test"
    posts: str | None = None
    quantize: Literal["int8"] | None = None
    push: str | None = None
    private: bool = True
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] = "other"

    @model_validator(mode="after")
    def _exports_one_thing(self) -> "ExportConfig":
        needed = "predictions" if self.format == "labelstudio" else "checkpoint"
        other = "checkpoint" if needed == "predictions" else "predictions"
        if getattr(self, needed) is None:
            raise ValueError(f"`{needed}` must be given for format={self.format}.")
        if getattr(self, other) is not None:
            raise ValueError(f"`{other}` is not read by format={self.format}; leave it out.")
        return self

    @model_validator(mode="after")
    def _quantises_onnx(self) -> "ExportConfig":
        if self.quantize is not None and self.format != "onnx":
            raise ValueError(f"`quantize` belongs to format=onnx, but `format` is {self.format}.")
        if self.push is not None and self.format == "labelstudio":
            raise ValueError("`push` is of models; what format=labelstudio writes holds posts.")
        return self
