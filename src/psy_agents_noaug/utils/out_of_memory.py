"""Telling a want of memory from other errors, and giving back what can be."""

import torch

# What a want of memory may be raised as.
MEMORY_ERRORS = (RuntimeError, MemoryError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left for a tensor."""
    causes = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(cause in str(error) for cause in causes)
    )


def give_memory_back() -> None:
    """Let go of what PyTorch holds of a GPU's memory without using it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
