"""`python -m psy_agents_noaug` is `psy-agents`."""

import sys

from psy_agents_noaug.cli import main

if __name__ == "__main__":
    sys.exit(main())
