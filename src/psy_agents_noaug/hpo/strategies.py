"""Optuna's samplers and pruners by their names in the configuration."""

import warnings

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
)
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler

from psy_agents_noaug.hpo.settings import PrunerConfig, SamplerConfig


def build_sampler(config: SamplerConfig, *, n_trials_before: int) -> BaseSampler:
    """Return the sampler for the next trial of a study that has so many.

    It is made anew for each trial, its seed drawn from the configured one and the trial's number:
    workers do not propose the same values, and a study that is gone on with proposes what it would have.
    A grid's points are enqueued beforehand, so that nothing is left to sample.
    """
    seed = int(np.random.SeedSequence([config.seed, n_trials_before]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match config.name:
            case "tpe":
                return TPESampler(
                    n_startup_trials=config.n_startup_trials,
                    multivariate=True,
                    group=True,
                    constant_liar=True,
                    seed=seed,
                )
            case "cmaes":
                return CmaEsSampler(
                    n_startup_trials=config.n_startup_trials,
                    independent_sampler=TPESampler(seed=seed),
                    seed=seed,
                )
            case "random" | "grid":
                return RandomSampler(seed=seed)


def build_pruner(config: PrunerConfig) -> BasePruner:
    """Return the pruner; what it counts are evaluations, from 1, where Optuna's pruners count from 0."""
    match config.name:
        case "median":
            return MedianPruner(
                n_startup_trials=config.n_startup_trials,
                n_warmup_steps=config.n_warmup_evaluations + 1,
            )
        case "percentile":
            return PercentilePruner(
                config.percentile,
                n_startup_trials=config.n_startup_trials,
                n_warmup_steps=config.n_warmup_evaluations + 1,
            )
        case "hyperband":
            return HyperbandPruner(
                min_resource=config.n_warmup_evaluations + 1,
                reduction_factor=config.reduction_factor,
            )
        case "none":
            return NopPruner()
