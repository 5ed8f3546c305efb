"""Search: python scripts/run_hpo_stage.py hpo=stage0_sanity task=criteria [key=value]... (--help)."""

import sys

from psy_agents_noaug.cli import run_hpo

if __name__ == "__main__":
    sys.exit(run_hpo(sys.argv[1:]))
