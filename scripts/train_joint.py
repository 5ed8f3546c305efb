"""Train the joint task: python scripts/train_joint.py [key=value]... (--help lists the keys)."""

import sys

from psy_agents_noaug.cli import run_train

if __name__ == "__main__":
    sys.exit(run_train("joint", sys.argv[1:]))
