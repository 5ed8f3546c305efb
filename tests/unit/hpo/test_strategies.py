import optuna
import pytest

from psy_agents_noaug.hpo.settings import PrunerConfig, SamplerConfig
from psy_agents_noaug.hpo.strategies import build_pruner, build_sampler

PRUNER = {
    "percentile": 50.0,
    "n_startup_trials": 1,
    "n_warmup_evaluations": 1,
    "reduction_factor": 3,
}


def pruned_at(name: str) -> int | None:
    """After which evaluation a trial that is always worse than the one before it is pruned."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = build_pruner(PrunerConfig(name=name, **PRUNER))
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for value in (1.0, 0.0):
        trial = study.ask()
        for step in range(1, 10):
            trial.report(value, step=step)
            if value == 0.0 and trial.should_prune():
                return step
        study.tell(trial, value)
    return None


@pytest.mark.parametrize("name", ["median", "percentile"])
def test_so_many_evaluations_are_spared_as_is_said(name):
    assert pruned_at(name) == 2


def test_no_pruner_prunes_nothing():
    assert pruned_at("none") is None


@pytest.mark.parametrize("name", ["tpe", "random", "cmaes", "grid"])
def test_a_sampler_depends_on_its_seed_and_on_the_number_of_trials_alone(name):
    def proposal(*, seed: int, before: int) -> float:
        config = SamplerConfig(name=name, seed=seed, n_startup_trials=1)
        study = optuna.create_study(sampler=build_sampler(config, n_trials_before=before))
        return study.ask().suggest_float("x", 0.0, 1.0)

    assert proposal(seed=1, before=3) == proposal(seed=1, before=3)
    assert len({proposal(seed=s, before=b) for s in (1, 2) for b in (3, 4)}) == 4


def test_hyperband_prunes_and_takes_its_resources_from_the_evaluations():
    pruner = build_pruner(PrunerConfig(name="hyperband", **PRUNER))
    assert isinstance(pruner, optuna.pruners.HyperbandPruner)
    assert pruner._min_resource == 2
