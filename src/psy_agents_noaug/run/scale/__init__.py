"""Prediction in units: many files, many processes, interrupted anywhere, merged to one table."""
