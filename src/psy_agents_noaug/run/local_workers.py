"""The other workers of a command on this machine: processes, with a GPU each if there are any."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.utils.files import storing

_GRACE_SECONDS = 60.0

logger = logging.getLogger(__name__)


@contextmanager
def other_workers(
    argv: Sequence[str], folder: Path, *, count: int, num_threads: int | None, device: str
) -> Iterator[None]:
    """Start the other local workers, and wait for them at the end. An error here stops them too.

    Args:
        argv: the command line of each, the verb first.
        folder: of their logs.
        count: of all local workers.
        num_threads: `training.num_threads` of each.
        device: `training.device`.

    Raises:
        ConfigError: a worker stopped with an error.
        StorageError: the log of one cannot be written.
    """
    command = [sys.executable, "-m", "psy_agents_noaug"]
    # All workers get the number of threads that this process has chosen.
    if count > 1:
        argv = [*argv, f"training.num_threads={num_threads}"]
    processes: dict[Path, subprocess.Popen[bytes]] = {}
    gpus = gpus_of_workers(count, device=device)
    try:
        for number in range(1, count):
            log = folder / f"worker-{number}.log"
            environment = {**os.environ}
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
            with storing(log), log.open("wb") as file:
                processes[log] = subprocess.Popen(
                    [*command, *argv], stdout=file, stderr=file, env=environment
                )
        yield
        codes = {log: process.wait() for log, process in processes.items()}
    except BaseException:
        _stop(list(processes.values()))
        raise
    killed = [str(log) for log, code in codes.items() if code < 0]
    if killed:
        logger.warning("Workers were killed; see %s.", ", ".join(killed))
    failed = [f"{log} (exit {code})" for log, code in codes.items() if code > 0]
    if failed:
        raise ConfigError(
            f"Workers stopped with an error; see the end of {', '.join(failed)}. Finished trainings are "
            "kept; fix the cause and start the same command again."
        )


def gpus_of_workers(count: int, *, device: str) -> list[str]:
    """Return the GPUs that local workers take one each, as in CUDA_VISIBLE_DEVICES.

    This process, the first worker, trains on the first of them. The list is empty if there are none, or
    `training.device` names another device.
    """
    if device not in ("auto", "cuda") or count == 1:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    n_gpus = torch.cuda.device_count()
    gpus = visible.split(",")[:n_gpus] if visible else [str(number) for number in range(n_gpus)]
    if 0 < len(gpus) < count:
        logger.warning(
            "%d workers share %d GPUs: trainings take longer, and may run out of memory.",
            count,
            len(gpus),
        )
    return gpus


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop workers; each may first save the state of its training."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
