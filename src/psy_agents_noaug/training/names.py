"""Names of checkpoints, without importing torch."""

BEST = "best_checkpoint.pt"
LAST = "last_checkpoint.pt"
