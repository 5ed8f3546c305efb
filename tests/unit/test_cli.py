import subprocess
import sys

import pytest

IN_A_GROUP = """
import signal
import sys
import torch.distributed
from psy_agents_noaug import cli
from psy_agents_noaug.errors import Interrupted

def run():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    if sys.argv[1] == "interrupted":
        raise Interrupted("stopped", exit_code=130)
    if sys.argv[1] == "asked twice":
        leave = torch.distributed.destroy_process_group
        torch.distributed.destroy_process_group = lambda: (signal.raise_signal(signal.SIGTERM), leave())
        signal.raise_signal(signal.SIGTERM)
    return "done"

code = cli._guarded(run)
print(code, torch.distributed.is_initialized())
"""


@pytest.mark.parametrize(
    ("how", "out"),
    [
        ("done", "done\n0 False\n"),
        ("interrupted", "130 False\n"),
        ("asked twice", "143 False\n"),
    ],
)
def test_a_process_leaves_its_group_before_it_ends(how, out):
    done = subprocess.run(
        [sys.executable, "-c", IN_A_GROUP, how], capture_output=True, text=True, check=True
    )
    assert done.stdout == out
