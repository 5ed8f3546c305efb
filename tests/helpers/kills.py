"""Kill a command at random moments until it comes to its end."""

import random
import signal
import time
from collections.abc import Callable
from typing import Any

_SIGNALS = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]


def finish_with_kills(start: Callable[[], Any], *, seconds: float) -> None:
    """Start a command again and again, killed at random moments, until it ends by itself.

    The first three processes live a quarter of an undisturbed one at most, so that there are kills.
    Later ones may live longer and longer, so that the command gets on however slow the machine is.

    Args:
        start: starts the command, and returns its process.
        seconds: that an undisturbed one takes.
    """
    draw, ended = random.Random(), []
    while 0 not in ended and len(ended) < 100:
        process = start()
        longest = seconds / 4 * max(1, len(ended) - 1)
        deadline = time.monotonic() + draw.uniform(seconds / 20, longest)
        while process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.is_alive():
            process.send_signal(draw.choice(_SIGNALS))
        done = process.wait()
        ended.append(done.returncode)
        assert done.returncode in (0, -signal.SIGKILL, 143), done.stderr
    assert ended[-1] == 0
    assert len(ended) > 2, f"it was hardly killed: {ended}"
