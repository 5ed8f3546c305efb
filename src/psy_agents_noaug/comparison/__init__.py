"""Comparison of trained systems on the same posts: `psy-agents compare`."""
