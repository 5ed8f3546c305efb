"""Evaluate a criteria checkpoint: python scripts/eval_criteria.py checkpoint=PATH [split=val]."""

import sys

from psy_agents_noaug.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "task=criteria", *sys.argv[1:]]))
