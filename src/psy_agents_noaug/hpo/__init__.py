"""Hyperparameter search in stages; every trial is an ordinary training, `run.train.train`."""
