"""Train the criteria task: python scripts/train_criteria.py [key=value]... (--help lists the keys)."""

import sys

from psy_agents_noaug.cli import run_train

if __name__ == "__main__":
    sys.exit(run_train("criteria", sys.argv[1:]))
