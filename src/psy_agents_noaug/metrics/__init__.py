"""What a run reports: classification figures, their intervals, and the baselines beside them.

Pure functions of arrays; nothing here knows a model, a file or a configuration.
"""
