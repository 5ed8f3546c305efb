import platform
import subprocess
import sys
from pathlib import Path

import pytest

from psy_agents_noaug.utils.memory import keep_freed_memory

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.skipif(
    HUGE_PAGES.is_file() and "[always]" in HUGE_PAGES.read_text(),
    reason="with huge pages nothing is to be seen",
)
def test_freed_memory_serves_the_next_tensor_without_the_system():
    """In a process of its own: what was allocated before decides whether the heap has a place."""
    program = """
import resource, torch
from psy_agents_noaug.utils.memory import keep_freed_memory
assert keep_freed_memory()
for _ in range(20):  # the heap takes a few rounds to have a place that fits
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(16 * 2**20).add_(1.0)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) < 1000  # 16384 pages, if they were new


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
