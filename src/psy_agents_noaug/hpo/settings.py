"""What `configs/hpo/` may hold: a stage, its strategy, its workers."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from psy_agents_noaug.config.schema import Fraction, Positive, Section

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class SamplerConfig(Section):
    """How the next trial's values are chosen (Optuna's samplers; grid: every combination once)."""

    name: Literal["tpe", "random", "cmaes", "grid"]
    seed: Seed
    n_startup_trials: Positive


class PrunerConfig(Section):
    """When a trial is given up: by its figure after as many evaluations as others have had.

    percentile: trials must be among the best so many percent (median: 50). n_startup_trials: finished
    trials before any is pruned. n_warmup_evaluations: of a trial that are spared; hyperband's
    smallest resource is one more.
    """

    name: Literal["median", "percentile", "hyperband", "none"]
    percentile: Annotated[float, Field(gt=0.0, lt=100.0)]
    n_startup_trials: Annotated[int, Field(ge=0)]
    n_warmup_evaluations: Annotated[int, Field(ge=0)]
    reduction_factor: Annotated[int, Field(ge=2)]


class NarrowConfig(Section):
    """Search around another stage's best: see `SearchSpace.narrowed`.

    best_config: its file; null: outputs/hpo_stage1/<task>/best_config.yaml. width: of the new range,
    as a share of the old one.
    """

    best_config: str | None
    width: Annotated[float, Field(gt=0.0, lt=1.0)]


class RefitConfig(Section):
    """Train a best configuration and the default one with several seeds, and look at test once each.

    best_config: null: outputs/hpo_stage2/<task>/best_config.yaml.
    """

    best_config: str | None
    seeds: Annotated[list[Seed], Field(min_length=2)]
    n_randomisations: Annotated[int, Field(ge=100)]
    confidence: Fraction

    @model_validator(mode="after")
    def _seeds_differ(self) -> "RefitConfig":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("`hpo.refit.seeds` must differ from each other.")
        return self


class StageConfig(Section):
    """A stage of the search (`configs/hpo/`).

    stage: its number; the results go to `<output_dir>/hpo_stage<N>/<task>`.
    study: its name in the storage; null: `<task>_<name>`.
    storage: null: a SQLite file beside the results; or postgresql://[user@]host/database.
    workers: processes here; more may be started anywhere by the same command.
    n_trials: of all workers together. max_retries: of a trial whose worker died.
    heartbeat_seconds: a worker is taken for dead after four without a sign of it.
    patience_seconds: how long workers wait for a storage that went away.
    space: what is searched in any task; task_spaces: and in one.
    reports: whether results are written at the end, by the first of several local workers.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    stage: Annotated[int, Field(ge=0, le=9)]
    study: str | None
    storage: str | None
    workers: Positive
    n_trials: Positive
    max_retries: Annotated[int, Field(ge=0)]
    heartbeat_seconds: Positive
    patience_seconds: Annotated[float, Field(ge=0.0)]
    sampler: SamplerConfig
    pruner: PrunerConfig
    settings: dict[str, Any]
    space: dict[str, Any]
    task_spaces: dict[str, dict[str, Any]]
    narrow: NarrowConfig | None
    refit: RefitConfig | None
    reports: bool = True

    @model_validator(mode="after")
    def _does_one_thing(self) -> "StageConfig":
        if self.narrow and self.refit:
            raise ValueError("`hpo.narrow` and `hpo.refit` are of different stages: leave one out.")
        return self
