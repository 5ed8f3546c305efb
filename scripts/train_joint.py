"""Train the joint task: python scripts/train_joint.py [key=value]... (--help lists the keys)."""

import sys

from psy_agents_noaug.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", "task=joint", *sys.argv[1:]]))
