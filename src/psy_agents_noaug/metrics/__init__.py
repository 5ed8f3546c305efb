"""Metrics of a run, their intervals, and the baselines they are compared with.

Everything here is a function of arrays; nothing depends on a model, a file or a configuration.
"""
