"""Hyperparameter search in stages; every trial is an ordinary training, `run.train.train`."""

from psy_agents_noaug.utils.extras import require

# Before any module here imports them, and before a search has run for hours without its plots.
for _module in ("optuna", "sqlalchemy", "cmaes"):
    require(_module, extra="hpo", purpose="A search for hyperparameters")
