"""Optional fast paths: packed execution and a cheaper dropout.

`models/execution.py` alone imports this folder. Without it every encoder runs padded.
"""
