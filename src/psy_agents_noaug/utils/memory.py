"""How the process gets memory from the operating system."""

import ctypes
import platform

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER_TRIM = -1
_GROW_BY_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Make malloc keep freed memory for the next allocation. Return whether this platform can.

    By default glibc maps each large tensor separately and unmaps it when it is freed, so the system
    clears every page of the next one. With micro-batches of 2048 tokens this took a third of a
    training step.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER_TRIM, _M_TOP_PAD: _GROW_BY_BYTES}
    accepted = [mallopt(parameter, value) for parameter, value in settings.items()]
    return all(accepted)
