"""Recording what a run does: MLflow while it runs, a manifest for afterwards."""
