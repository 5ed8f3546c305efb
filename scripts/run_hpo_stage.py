"""Search: python scripts/run_hpo_stage.py hpo=stage0_sanity task=criteria [key=value]... (--help)."""

import sys

from psy_agents_noaug.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
