import platform
import resource
from pathlib import Path

import pytest
import torch

from psy_agents_noaug.utils.memory import keep_freed_memory

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.skipif(
    HUGE_PAGES.is_file() and "[always]" in HUGE_PAGES.read_text(),
    reason="with huge pages nothing is to be seen",
)
def test_freed_memory_serves_the_next_tensor_without_the_system():
    assert keep_freed_memory()

    def faults_of_a_large_tensor() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(16 * 2**20).add_(1.0)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    # The heap takes a few rounds to have a place that fits.
    faults = [faults_of_a_large_tensor() for _ in range(20)]
    assert faults[-1] < 1000  # 16384 pages, if they were new


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
