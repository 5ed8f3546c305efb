"""Optuna's samplers and pruners, by their names in the configuration."""

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
    """Return a sampler for the next trial of a study.

    Each trial has its own sampler, whose seed depends on the configured seed and the trial's number. So
    workers do not propose the same values, and a resumed study proposes what it would have proposed
    without the stop. The points of a `grid` are enqueued when the study begins and need no sampler.

    Args:
        config: name and seed of the sampler.
        n_trials_before: trials that the study has already.
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
    """Return the pruner. Evaluations are counted from 1; Optuna's pruners count steps from 0."""
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
