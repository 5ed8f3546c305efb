"""The story of a run: train, evaluate, and what both need."""
