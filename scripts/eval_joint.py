"""Evaluate a joint checkpoint: python scripts/eval_joint.py checkpoint=PATH [split=val]."""

import sys

from psy_agents_noaug.cli import run_evaluate

if __name__ == "__main__":
    sys.exit(run_evaluate("joint", sys.argv[1:]))
