"""Evaluate an evidence checkpoint: python scripts/eval_evidence.py checkpoint=PATH [split=val]."""

import sys

from psy_agents_noaug.cli import run_evaluate

if __name__ == "__main__":
    sys.exit(run_evaluate("evidence", sys.argv[1:]))
