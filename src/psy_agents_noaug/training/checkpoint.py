"""Checkpoints: written atomically, verified by a checksum, and safe to read.

A checkpoint is an ordinary `torch.save` archive, so `torch.load(path, weights_only=True)` reads it
anywhere. The archive's comment field holds the SHA-256 of the rest.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch import Tensor

from psy_agents_noaug.errors import (
    CheckpointError,
    NonFiniteError,
    PsyAgentsError,
    first_of,
)
from psy_agents_noaug.utils.files import write_atomically
from psy_agents_noaug.utils.out_of_memory import is_out_of_memory

FORMAT_VERSION = 4
_MAGIC = b"psy-agents-noaug sha256:"
_ZIP_MAGIC = b"PK\x03\x04"
# The bytes after the hashed ones: the length of the comment, and the comment before the digest.
_TAIL = (len(_MAGIC) + 64).to_bytes(2, "little") + _MAGIC
_CHUNK = 1 << 20
# The types of a checkpoint's parts, as far as one type holds for all tasks.
_KINDS = {
    "task": str,
    "step": int,
    "config": dict,
    "metadata": dict,
    "weights": dict,
    "decision_rule": dict,
    "metrics": dict,
    "resume": dict | None,
}
# What a part that is absent, or of another form, leads to where it is used.
_UNFIT = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)
_UNREADABLE = (*_UNFIT, UnpicklingError, EOFError, AssertionError, ArithmeticError)


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint.

    Args:
        task: name of the task.
        step: number of updates of the weights.
        config: the resolved configuration.
        metadata: rebuilds the model and describes its data: encoder files, criteria, fingerprints.
        weights: state dict of the model.
        decision_rule: fitted on val at this step; where val was trained on too (`refit` in the
            metadata), on out-of-fold predictions.
        metrics: on val at this step; none where it was trained on too.
        resume: state of optimizer, scheduler, scaler, early stopping and trainer, and the number of
            processes (since 0.3.0); None in a best checkpoint.
    """

    task: str
    step: int
    config: dict[str, Any]
    metadata: dict[str, Any]
    weights: dict[str, Tensor]
    decision_rule: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    resume: dict[str, Any] | None = None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` atomically, with its checksum.

    Raises:
        NonFiniteError: a weight, or a number of the optimizer's state, is NaN or infinite; nothing is
            written.
        StorageError: it cannot be written; a file that was there is as it was.
    """
    optimizer = (checkpoint.resume or {}).get("optimizer", {})
    bad = [*_non_finite(checkpoint.weights), *_non_finite({"the optimizer's state": optimizer})]
    if bad:
        raise NonFiniteError(
            f"After step {checkpoint.step}, {first_of(bad)} are NaN or infinite, so {path.name} was not "
            "written; what was saved before is whole. Lower `training.learning_rate`, set "
            "`training.max_grad_norm`, or use `training.amp=off` or bf16."
        )
    payload = {"format_version": FORMAT_VERSION, **vars(checkpoint)}

    def write(file: BinaryIO) -> None:
        torch.save(payload, file)
        # The archive ends with the length of its comment (two bytes); the comment is empty so far.
        file.flush()
        end = file.tell()
        digest = _digest(file, end - 2)
        file.seek(end - 2)
        file.write(_TAIL + digest.encode())

    write_atomically(path, write, needed=tensor_bytes(payload))


def load_checkpoint(path: Path, *, task: str | None = None) -> Checkpoint:
    """Read and verify a checkpoint. Code in it is never executed.

    Args:
        path: the file.
        task: the required task; None accepts any.

    Raises:
        CheckpointError: the file is missing, truncated, altered, unsafe, or of another format or task,
            or a weight in it is NaN or infinite.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    try:
        _verify(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path} is refused: it holds objects other than tensors and plain values, which could "
            "run code when read."
        ) from error
    version = payload.get("format_version") if isinstance(payload, dict) else None
    if version == 3:
        version, payload = FORMAT_VERSION, _from_format_3(payload)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"The format version of {path} must be {FORMAT_VERSION}, but is {version!r} instead."
        )
    del payload["format_version"]
    if set(payload) != {part.name for part in fields(Checkpoint)}:
        raise CheckpointError(f"{path} is refused: its parts are {sorted(map(str, payload))}.")
    checkpoint = Checkpoint(**payload)
    if wrong := [name for name, kind in _KINDS.items() if not isinstance(payload[name], kind)]:
        raise CheckpointError(f"{path} is refused: {', '.join(wrong)} must be of another type.")
    if task is not None and checkpoint.task != task:
        raise CheckpointError(
            f"{path} must be a checkpoint of the task `{task}`, but is of `{checkpoint.task}` instead."
        )
    if bad := _non_finite(checkpoint.weights):
        raise CheckpointError(
            f"{path} is refused: its weights {first_of(bad)} are NaN or infinite. Use another "
            "checkpoint."
        )
    return checkpoint


def _non_finite(values: Any) -> list[str]:
    """Return the names below which a tensor, at any depth, holds NaN or infinite numbers."""
    named = values.items() if isinstance(values, Mapping) else ()
    return [str(name) for name, value in named if not all(map(_is_finite, _tensors(value)))]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


@contextmanager
def using(
    path: Path,
    *,
    refusal: type[PsyAgentsError] = CheckpointError,
    remedy: str = "Use another copy, or the version that wrote it.",
) -> Iterator[None]:
    """Turn what an absent or unfit part of the file at `path` leads to into an error.

    The checksum of a checkpoint is right, so it was written so: by another program or version, or with
    intent.

    Args:
        path: of the checkpoint, or of another file with parts.
        refusal: the error.
        remedy: the end of its message.
    """
    try:
        yield
    except _UNFIT as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        raise refusal(
            f"{path} cannot be used: a part of it is absent or of another form than expected "
            f"({reason}, {type(error).__name__}). {remedy}"
        ) from error


def _from_format_3(payload: dict[str, Any]) -> dict[str, Any]:
    """Rename the parts of a checkpoint of version 0.1.0 to their current names."""
    payload["decision_rule"] = payload.pop("calibration", None)
    resume = payload.get("resume")
    if isinstance(resume, dict) and "position" in resume:
        resume["state"] = resume.pop("position")
    return payload


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """Hash names, types, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors in nested mappings and sequences."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0


def _verify(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        size = file.tell()
        tail_start = size - len(_TAIL) - 64
        file.seek(max(tail_start, 0))
        tail = file.read()
        if tail_start < 0 or not tail.startswith(_TAIL):
            raise CheckpointError(
                f"{path} is truncated, or is not a checkpoint of this project: its checksum is missing."
            )
        if _digest(file, tail_start) != tail[len(_TAIL) :].decode("ascii", "replace"):
            raise CheckpointError(
                f"{path} is damaged: its content does not match its checksum. Use another copy."
            )
        file.seek(0)
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            raise CheckpointError(f"{path} is refused: it is not an archive of tensors.")


def _digest(file: BinaryIO, size: int) -> str:
    """Hash the first `size` bytes of `file`."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (chunk := file.read(min(_CHUNK, size))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()
