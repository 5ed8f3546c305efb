"""Searching for hyperparameters: stages of studies whose trials are `runs.train`."""
