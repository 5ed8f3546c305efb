"""Settings of a search stage (`configs/hpo/`): its sampler, pruner, budget and workers."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from psy_agents_noaug.config.schema import Fraction, Positive, Section, Seed


class SamplerConfig(Section):
    """Which of Optuna's samplers chooses the values of the next trial.

    Args:
        name: the sampler; `grid` tries every combination once.
        seed: of the sampler; the seed of the trainings is a setting of its own.
        n_startup_trials: random trials before `tpe` and `cmaes` propose values.
    """

    name: Literal["tpe", "random", "cmaes", "grid"]
    seed: Seed
    n_startup_trials: Positive


class PrunerConfig(Section):
    """Which of Optuna's pruners ends a trial that is worse than others after as many evaluations.

    Args:
        name: the pruner.
        percentile: for `percentile`: the best trials that continue, in percent (`median` is 50).
        n_startup_trials: for `median` and `percentile`: finished trials before any trial is pruned.
        n_warmup_evaluations: evaluations of a trial before it may be pruned. The smallest resource of
            `hyperband` is one more.
        reduction_factor: for `hyperband`: one in this many trials continues to the next rung.
    """

    name: Literal["median", "percentile", "hyperband", "none"]
    percentile: Annotated[float, Field(gt=0.0, lt=100.0)]
    n_startup_trials: Annotated[int, Field(ge=0)]
    n_warmup_evaluations: Annotated[int, Field(ge=0)]
    reduction_factor: Annotated[int, Field(ge=2)]


class NarrowConfig(Section):
    """Search around the best trial of an earlier stage, see `SearchSpace.narrowed`.

    Args:
        best_config: its `best_config.yaml`; None: that of the stage before this one.
        width: of the new range, as a share of the old one.
    """

    best_config: str | None
    width: Annotated[float, Field(gt=0.0, lt=1.0)]


class RefitConfig(Section):
    """Train the best and the default configuration with several seeds, and evaluate each run on test.

    Args:
        best_config: the `best_config.yaml` of a search; None: that of the stage before this one.
        seeds: each configuration is trained once per seed.
        n_randomisations: resamples of the paired randomization test.
        confidence: level of the intervals.
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

    Args:
        name: of the stage.
        stage: its number N; results are written to `<output_dir>/hpo_stage<N>/<task>`.
        study: name of the study in the storage; None: `<task>_<name>`.
        storage: postgresql://[user@]host/database; None: a SQLite file beside the results.
        workers: local processes; the same command starts more on any machine.
        n_trials: of all workers together.
        max_retries: attempts in a row at a trial whose worker died before it got any further.
        heartbeat_seconds: between two heartbeats of a worker; one that misses four counts as dead.
        patience_seconds: how long workers wait for a storage that cannot be reached.
        sampler: chooses the values of a trial.
        pruner: ends trials early.
        settings: of the trainings of this stage; the command line wins over them.
        space: parameters searched in every task, see `SearchSpace.read`.
        task_spaces: by task, changes of `space`.
        narrow: search around the best trial of an earlier stage.
        refit: train the best trial of an earlier stage again, instead of searching.
        reports: whether this process writes the results; local workers but the first do not.
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
    def _narrows_or_refits(self) -> "StageConfig":
        if self.narrow and self.refit:
            raise ValueError(
                "`hpo.narrow` and `hpo.refit` belong to different stages: leave one out."
            )
        return self
