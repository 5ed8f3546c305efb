"""Every setting, its type and its bounds. The values are in `configs/`.

Unknown keys are refused and types are strict: `training.epochs=2.5` and `amp: yes` are errors.
"""

import functools
import re
from typing import Annotated, ClassVar, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
Architecture = Literal["cross_encoder", "label_attention"]
ARCHITECTURES = get_args(Architecture)
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
    split_fractions: Annotated[list[float], Field(min_length=3, max_length=3)]
    split_seed: Annotated[int, Field(ge=0)]
    fuzzy_threshold: Annotated[float, Field(ge=0.0, le=100.0)]
    offset_unit: Literal["code_points", "utf16", "utf8_bytes", "lf", "crlf"] = "code_points"
    inclusive_ends: bool = False
    near_duplicate_threshold: Annotated[float, Field(gt=0.0, le=1.0)]
    duplicates: Literal["warn", "drop_from_train"] = "warn"
    subgroups: list[str] = []
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
        if abs(sum(self.split_fractions) - 1.0) > 1e-6 or min(self.split_fractions) <= 0.0:
            raise ValueError(
                "`data.split_fractions` must be three positive numbers that sum to 1, "
                f"but is {self.split_fractions} instead."
            )
        return self


class LoraConfig(Section):
    """Low-rank adapters on the encoder (Hu et al. 2022), through `peft`."""

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


class TaskSettings(Section):
    """The section `task`. Every task derives its own settings model from this one.

    Attributes:
        headline_metrics: the metrics by which results of the task are compared, the main one first.
        architectures: the values of `model.architecture` that the task has.
        name: of the task.
    """

    headline_metrics: ClassVar[tuple[str, ...]] = ()
    architectures: ClassVar[tuple[str, ...]] = ("cross_encoder",)

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
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    output_dir: str
    run_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None
    resume: str | None
    best_config: str | None

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
        conflicts = self.task.conflicts(self.data, self.model)
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


class EvaluateConfig(Section):
    """Settings of an evaluation, besides the configuration in the checkpoint."""

    checkpoint: str
    split: Literal["train", "val", "test"]
    prevalence: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
