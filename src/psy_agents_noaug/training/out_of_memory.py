"""Telling a want of memory from other errors."""

import torch


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device or the machine had no memory left for a tensor."""
    causes = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(c in str(error) for c in causes)
