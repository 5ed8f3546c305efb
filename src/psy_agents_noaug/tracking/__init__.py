"""Records of a run: MLflow while it runs, and a manifest that stays with its results."""
