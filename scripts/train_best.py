"""Train a search's best: python scripts/train_best.py task=criteria best_config=FILE [key=value]..."""

import sys

from psy_agents_noaug.cli import run_train_best

if __name__ == "__main__":
    sys.exit(run_train_best(sys.argv[1:]))
