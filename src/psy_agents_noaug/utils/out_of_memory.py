"""Recognition of out-of-memory errors, and release of GPU memory."""

import torch

# The types of out-of-memory errors.
MEMORY_ERRORS = (RuntimeError, MemoryError)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a device or the machine had no memory left for a tensor."""
    causes = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(cause in str(error) for cause in causes)
    )


def give_memory_back() -> None:
    """Release the GPU memory that PyTorch has cached and does not use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
