"""Evaluate a joint checkpoint: python scripts/eval_joint.py checkpoint=PATH [split=val]."""

import sys

from psy_agents_noaug.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "task=joint", *sys.argv[1:]]))
