"""Train a search's best: python scripts/train_best.py task=criteria best_config=FILE [key=value]..."""

import sys

from psy_agents_noaug.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train-best", *sys.argv[1:]]))
