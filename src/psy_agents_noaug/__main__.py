# PYTHON_ARGCOMPLETE_OK
"""The entry of `psy-agents`, of `python -m psy_agents_noaug` and of the files of `scripts/`.

Nothing else is imported before Ctrl-C has its effect here: an import that it interrupts is a traceback.
"""

import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, as `cli.main` does, in a process that does nothing else.

    Args:
        argv: the arguments, the verb first; None: those of this process.
    """
    # Until a command begins there is nothing to save or to say. `nohup` or a script may ignore it.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: sys.exit(128 + signal.SIGINT))
    from psy_agents_noaug import cli

    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
