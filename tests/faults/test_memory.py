"""Memory that runs out: whatever the error is called, wherever it is raised, in any process."""

import errno
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import OutOfMemoryError
from psy_agents_noaug.run import train as train_module
from psy_agents_noaug.run.train import train
from psy_agents_noaug.tasks.criteria.evaluation import CriteriaEvaluation
from psy_agents_noaug.training.batching import Step
from psy_agents_noaug.training.checkpoint import load_checkpoint, weights_sha256
from psy_agents_noaug.training.evaluator import Evaluator
from psy_agents_noaug.training.precision import Precision
from psy_agents_noaug.training.trainer import Trainer
from psy_agents_noaug.utils.out_of_memory import is_out_of_memory

MakeConfig = Callable[..., TrainConfig]
Together = Callable[..., list[tuple[int, str]]]


def accelerator_error(code: int, text: str) -> RuntimeError:
    error = torch.AcceleratorError(text)
    error.error_code = code
    return error


def raised_by(allocate: Callable[[], object]) -> Exception:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    return caught.value


FORMS = {
    "PyTorch on this CPU": raised_by(lambda: torch.empty(1 << 50)),
    "NumPy on this CPU": raised_by(lambda: np.ones(1 << 50)),
    "Python": MemoryError(),
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CUDA's runtime": accelerator_error(2, "CUDA error: memory allocation"),
    "CUDA's driver": RuntimeError("CUDA driver error: out of memory"),
    "NCCL": RuntimeError("NCCL Error 1: unhandled cuda error. Cuda failure 2 'out of memory'"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 9 GB, max allowed: 9 GB)"),
    "oneDNN": RuntimeError("could not create a primitive"),
    "oneMKL": RuntimeError("Intel oneMKL DFTI ERROR: Not enough memory to allocate"),
    "shared memory": RuntimeError("unable to mmap 4096 bytes from file </x>: (12)"),
    "C++": RuntimeError("std::bad_alloc"),
    "a new process": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "an import": ImportError("_lib.so: failed to map segment from shared object"),
}
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("could not create a primitive descriptor for the matmul primitive."),
    accelerator_error(710, "CUDA error: device-side assert triggered"),
    ImportError("cannot import name 'x' from 'y'"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("out of memory"),
]


@pytest.mark.parametrize("form", FORMS)
def test_memory_that_runs_out_is_recognised_by_whatever_name(form: str) -> None:
    assert is_out_of_memory(FORMS[form])


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


def limit_training(patch: pytest.MonkeyPatch, error: Exception, *, most: int = 192) -> None:
    """Let memory run out in training while a micro-batch may have more than `most` tokens."""
    original = Trainer._gradients

    def limited(self: Trainer, step: Step) -> list[torch.Tensor]:
        losses = original(self, step)
        if self._state.max_tokens > most:
            raise error
        return losses

    patch.setattr(Trainer, "_gradients", limited)


def limit_predictions(patch: pytest.MonkeyPatch, error: Exception, *, most: int = 192) -> None:
    """Let memory run out in predictions while a batch may have more than `most` tokens."""
    original = Evaluator._predict

    def limited(self: Evaluator, *given: Any) -> Any:
        share = original(self, *given)
        if self._max_tokens > most:
            raise error
        return share

    patch.setattr(Evaluator, "_predict", limited)


LIMITS = {"training": limit_training, "the evaluation": limit_predictions}


def best_weights(config: TrainConfig) -> str:
    path = Path(config.output_dir) / "criteria" / str(config.run_name)
    return weights_sha256(load_checkpoint(path / "checkpoints/best_checkpoint.pt").weights)


@pytest.mark.parametrize("form", ["CUDA's runtime", "oneDNN", "NumPy on this CPU"])
@pytest.mark.faults(
    "out of memory in a training step", "batches are halved, and the step is repeated"
)
def test_batches_of_a_training_step_are_halved(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    small, big = (
        make_config(f"run_name={n}", f"training.micro_batch_tokens={n}", "training.epochs=1")
        for n in (192, 768)
    )
    train(small)
    limit_training(monkeypatch, FORMS[form])
    train(big)
    assert best_weights(big) == best_weights(small)


@pytest.mark.parametrize("place", LIMITS)
@pytest.mark.faults(
    "out of memory in one of two processes, in training or at the evaluation",
    "both halve their batches and go on; the weights are those of the smaller batches",
)
def test_processes_halve_their_batches_together(
    make_config: MakeConfig, together: Together, place: str
) -> None:
    small, big = (
        make_config(
            f"run_name={n}",
            f"training.micro_batch_tokens={n}",
            "training.epochs=1",
            "training.train_batch_size=16",
        )
        for n in (192, 768)
    )

    def short_of_memory(rank: int) -> None:
        if rank == 1:
            LIMITS[place](pytest.MonkeyPatch(), FORMS["oneDNN"])
        train(big)

    assert together(2, lambda rank: train(small)) == [(0, "")] * 2
    assert together(2, short_of_memory, seconds=60) == [(0, "")] * 2
    if place == "training":
        assert best_weights(big) == best_weights(small)


@pytest.mark.parametrize("place", LIMITS)
@pytest.mark.faults(
    "one of two processes has no memory for one example", "one message with what to set; none waits"
)
def test_a_process_without_memory_for_one_example_ends_all_of_them(
    make_config: MakeConfig, together: Together, place: str
) -> None:
    def short_of_memory(rank: int) -> None:
        if rank == 1:
            LIMITS[place](pytest.MonkeyPatch(), FORMS["CUDA"], most=0)
        train(make_config())

    found = together(2, short_of_memory, seconds=60)
    assert [code for code, _ in found] == [2, 2]
    assert found[0] == found[1]
    assert "OutOfMemoryError: Memory ran out" in found[0][1]
    assert "model.max_length" in found[0][1]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.faults(
    "out of memory for the optimizer's state, at the first update",
    "one message with what to set, in all processes; nothing is saved",
)
def test_the_optimizers_state_is_named_where_there_is_no_memory_for_it(
    make_config: MakeConfig, together: Together, tmp_path: Path, count: int
) -> None:
    def short_of_memory(rank: int) -> None:
        if rank == count - 1:

            def no_memory(*_: object) -> bool:
                raise FORMS["PyTorch on this CPU"]

            pytest.MonkeyPatch().setattr(Precision, "step", no_memory)
        train(make_config())

    found = together(count, short_of_memory, seconds=60)
    assert [code for code, _ in found] == [2] * count
    for _, message in found:
        assert message.startswith("OutOfMemoryError: Memory ran out (")
        assert "the optimizer's state takes twice the memory" in message
        assert "model.lora" in message
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("place", ["data", "metrics"])
@pytest.mark.parametrize("form", ["an import", "a new process", "Python"])
@pytest.mark.faults(
    "out of memory outside of a batch: reading data, importing or computing metrics",
    "one message with what to set",
)
def test_memory_that_runs_out_outside_of_a_batch_is_one_message(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, place: str, form: str
) -> None:
    def no_memory(*_: object) -> None:
        raise FORMS[form]

    where = (train_module, "prepare_data") if place == "data" else (CriteriaEvaluation, "metrics")
    monkeypatch.setattr(*where, no_memory)
    with pytest.raises(OutOfMemoryError, match=r"Memory ran out \(.*micro_batch_tokens"):
        train(make_config())


LIMITED = """
import resource, sys
import psutil
from psy_agents_noaug import cli
from psy_agents_noaug.training import trainer

def run(self, *given):
    limit = psutil.Process().memory_info().vms + 2**22
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return original(self, *given)

original = trainer.Trainer.fit
trainer.Trainer.fit = run
sys.exit(cli.main(["train", *sys.argv[1:]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
@pytest.mark.faults(
    "a real limit of memory (RLIMIT_AS), 4 MB above what the process has when training begins",
    "one message, exit 2",
)
def test_a_real_limit_of_memory_ends_in_one_message(overrides: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *overrides],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert len(re.findall("^OutOfMemoryError: Memory ran out", done.stderr, re.M)) == 1
    assert "Traceback" not in done.stderr
