"""Recognition of out-of-memory errors, and release of GPU memory."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from psy_agents_noaug.errors import OutOfMemoryError

# The types of out-of-memory errors.
MEMORY_ERRORS = (RuntimeError, MemoryError, OSError, ImportError)
_CUDA_ERROR_MEMORY_ALLOCATION = 2
# What the libraries behind PyTorch say in a RuntimeError.
_TEXTS = (
    "DefaultCPUAllocator",
    "unable to mmap",
    "could not create a primitive",  # oneDNN
    "could not create a memory",  # oneDNN
    "Not enough memory to allocate",  # oneMKL
    "out of memory",  # CUDA, HIP, MPS and XPU, however they are wrapped
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_ALLOC_FAILED",
    "Cannot allocate memory",  # the system, from a library that does not pass its number on
    "std::bad_alloc",
)
# oneDNN has no implementation of an operation: a descriptor has no memory of its own.
_OTHERS = ("could not create a primitive descriptor",)
# A shared library for which there is no room.
_IMPORT_TEXTS = ("Cannot allocate memory", "failed to map segment")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a device or the machine had no memory left, whatever the error is called."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    if isinstance(error, torch.AcceleratorError):
        code = getattr(error, "error_code", None)  # only of those that PyTorch raises
        return code == _CUDA_ERROR_MEMORY_ALLOCATION or "out of memory" in text
    if isinstance(error, RuntimeError):
        return any(part in text for part in _TEXTS) and not any(part in text for part in _OTHERS)
    if isinstance(error, ImportError):
        return any(part in text for part in _IMPORT_TEXTS)
    return isinstance(error, OSError) and error.errno == errno.ENOMEM


def cause_of(error: BaseException) -> str:
    """Return the first line of what an out-of-memory error says, or its type."""
    return str(error).partition("\n")[0] or type(error).__name__


@contextmanager
def explained_memory_errors(
    remedy: str = "free memory on this machine, lower `training.micro_batch_tokens` or "
    "`training.num_workers`, or choose a smaller encoder",
) -> Iterator[None]:
    """Turn an out-of-memory error into one with what to do.

    Args:
        remedy: what to do, as the end of a sentence.

    Raises:
        OutOfMemoryError: memory ran out.
    """
    try:
        yield
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"Memory ran out ({cause_of(error)}): {remedy}.") from error


def give_memory_back() -> None:
    """Release the GPU memory that PyTorch has cached and does not use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
