"""How the process gets memory from the operating system, and how much it has held."""

import ctypes
import platform

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = -1
_AT_ONCE = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed for what is allocated next. Return whether this platform can.

    Otherwise glibc maps every large tensor anew and returns it at once, and the system clears each of
    its pages for it: with micro-batches of 2048 tokens that was a third of a training step.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER, _M_TOP_PAD: _AT_ONCE}
    taken = [mallopt(parameter, value) for parameter, value in settings.items()]
    return all(taken)
