"""Checkpoints that are whole, verified and safe to read.

A checkpoint is an ordinary `torch.save` archive, so `torch.load(path, weights_only=True)` reads it
anywhere; the SHA-256 of the archive stands in the archive's own comment field.
"""

import hashlib
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch import Tensor

from psy_agents_noaug.errors import CheckpointError
from psy_agents_noaug.utils.files import write_atomically

FORMAT_VERSION = 4
_MAGIC = b"psy-agents-noaug sha256:"
_ZIP_MAGIC = b"PK\x03\x04"
# What follows the hashed bytes: the comment's length, and the comment up to the digest.
_TAIL = (len(_MAGIC) + 64).to_bytes(2, "little") + _MAGIC
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Args:
        task: the task's name.
        step: updates behind the weights.
        config: the resolved configuration.
        metadata: what rebuilds the model and reads its outputs (encoder files, criteria, fingerprints).
        weights: the model's state dict.
        decision_rule: fitted on val at this step.
        metrics: figures on val at this step.
        resume: the loop's own state (optimizer, scheduler, scaler, early stopping, trainer state); None
            in a best checkpoint.
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
    """Write `checkpoint` atomically with its checksum."""
    payload = {"format_version": FORMAT_VERSION, **vars(checkpoint)}

    def write(file: BinaryIO) -> None:
        torch.save(payload, file)
        # The archive ends with the two-byte length of its comment, which is empty so far.
        file.flush()
        end = file.tell()
        digest = _digest(file, end - 2)
        file.seek(end - 2)
        file.write(_TAIL + digest.encode())

    write_atomically(path, write)


def load_checkpoint(path: Path, *, task: str | None = None) -> Checkpoint:
    """Read and verify a checkpoint; nothing in it is ever executed.

    Args:
        path: the file.
        task: the task that it must be of; None takes any.

    Raises:
        CheckpointError: missing, truncated, altered, unsafe, of another format or of another task.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    _verify(path)
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError) as error:
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
    if task is not None and checkpoint.task != task:
        raise CheckpointError(
            f"{path} must be a checkpoint of the task `{task}`, but is of `{checkpoint.task}` instead."
        )
    return checkpoint


def _from_format_3(payload: dict[str, Any]) -> dict[str, Any]:
    """Give the parts of a checkpoint of version 0.1.0 their names of today."""
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


def _verify(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        size = file.tell()
        tail_start = size - len(_TAIL) - 64
        file.seek(max(tail_start, 0))
        tail = file.read()
        if tail_start < 0 or not tail.startswith(_TAIL):
            raise CheckpointError(
                f"{path} is truncated, or is no checkpoint of this project: its checksum is missing."
            )
        if _digest(file, tail_start) != tail[len(_TAIL) :].decode("ascii", "replace"):
            raise CheckpointError(
                f"{path} is damaged: its content does not match its checksum. Use another copy."
            )
        file.seek(0)
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            raise CheckpointError(f"{path} is refused: it is no archive of tensors.")


def _digest(file: BinaryIO, size: int) -> str:
    """Hash the first `size` bytes of `file`."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (chunk := file.read(min(_CHUNK, size))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()
