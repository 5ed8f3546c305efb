"""Train the evidence task: python scripts/train_evidence.py [key=value]... (--help lists the keys)."""

import sys

from psy_agents_noaug.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", "task=evidence", *sys.argv[1:]]))
