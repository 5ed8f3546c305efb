"""Seeds, devices, and what this machine is: everything outside the config that changes a result."""

import logging
import os
import platform
import random
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

logger = logging.getLogger(__name__)

_CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
# The two values for which NVIDIA documents cuBLAS as reproducible.
_CUBLAS_DETERMINISTIC = (":4096:8", ":16:8")
# How many threads PyTorch has, and how they wait for each other.
_OPENMP_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_MAX_AUTO_WORKERS = 4
_PREFETCH_FACTOR = 2


def set_seed(
    seed: int,
    *,
    deterministic: bool = True,
    warn_only: bool = False,
    cudnn_benchmark: bool = False,
) -> None:
    """Seed Python, NumPy and PyTorch (CPU and every accelerator), and choose the kernels.

    Also sets `PYTHONHASHSEED`, which only child processes read: the hash seed of the running
    process is fixed at its start. Nothing here relies on the order of a set or on `hash(str)`.

    Call it before the first CUDA operation: cuBLAS reads `CUBLAS_WORKSPACE_CONFIG` when its
    context is made. A call that comes too late is logged as a warning.

    Args:
        seed: 0 to 2**32 - 1 (NumPy's range).
        deterministic: use kernels that give the same bits every time; an operation that has none
            raises RuntimeError. Switches `cudnn_benchmark` off, which picks kernels by timing.
        warn_only: with `deterministic`, warn about such an operation instead of raising.
        cudnn_benchmark: let cuDNN time its kernels and take the fastest.

    Raises:
        ValueError: if `seed` is out of range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be between 0 and 2**32 - 1, but is {seed} instead.")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # CUDA (all devices) and MPS too
    os.environ["PYTHONHASHSEED"] = str(seed)

    if deterministic:
        _make_cublas_deterministic()
        if cudnn_benchmark:
            logger.warning("cudnn_benchmark is switched off: it is not deterministic.")
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = cudnn_benchmark and not deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    # Fills every new tensor, which only a program that reads memory it never wrote could tell.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def derived_seed(*parts: int) -> int:
    """Mix integers into a seed of 63 bits, stable across machines (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _make_cublas_deterministic() -> None:
    if os.environ.get(_CUBLAS_VARIABLE) in _CUBLAS_DETERMINISTIC:
        return
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        logger.warning(
            "CUDA was in use before %s was set: matrix products may differ between runs. "
            "Call set_seed first, or export %s=%s.",
            _CUBLAS_VARIABLE,
            _CUBLAS_VARIABLE,
            _CUBLAS_DETERMINISTIC[0],
        )
    os.environ[_CUBLAS_VARIABLE] = _CUBLAS_DETERMINISTIC[0]


@dataclass(frozen=True)
class DeviceInfo:
    """A device to train on and what it is good at.

    `supports_bf16` means fast in hardware, not merely possible. `memory_bytes` is the device's
    total memory (the machine's RAM for `cpu` and `mps`), `device_count` the number of CUDA GPUs.
    """

    device: torch.device
    name: str
    compute_capability: tuple[int, int] | None
    supports_tf32: bool
    supports_bf16: bool
    supports_fp16: bool
    memory_bytes: int
    device_count: int

    @property
    def fast_precisions(self) -> list[str]:
        """The number formats that the device computes fast in."""
        supported = {
            "fp32": True,
            "bf16": self.supports_bf16,
            "fp16": self.supports_fp16,
            "tf32": self.supports_tf32,
        }
        return [name for name, is_fast in supported.items() if is_fast]

    def describe(self) -> str:
        """Say in one line what the device is and which precisions it is fast at."""
        parts = [f"{self.device}: {self.name}", _gibibytes(self.memory_bytes)]
        if self.compute_capability is not None:
            parts.append("compute capability {}.{}".format(*self.compute_capability))
            parts.append(f"{self.device_count} GPU(s) in this machine")
        parts.append("fast precisions: " + ", ".join(self.fast_precisions))
        return ", ".join(parts)


def device_names() -> list[str]:
    """Return the names of this machine's devices: `cpu`, `mps` and `cuda:<index>`."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *mps, *(f"cuda:{index}" for index in range(gpus))]


def get_device(preferred: str = "auto") -> DeviceInfo:
    """Find the device to train on.

    Args:
        preferred: `auto` (CUDA, else MPS, else CPU), `cpu`, `mps`, `cuda`, or `cuda:<index>`.
            `auto` and `cuda` mean this process's own GPU under torchrun (`LOCAL_RANK`), the
            first one otherwise.

    Raises:
        ValueError: if this machine has no such device, or PyTorch has no kernels for it.
    """
    present = device_names()
    gpus = sum(name.startswith("cuda") for name in present)
    wanted = preferred
    if wanted == "auto":
        wanted = "cuda" if gpus else "mps" if "mps" in present else "cpu"
    if wanted == "cuda":
        wanted = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if wanted not in present:
        source = f" (from LOCAL_RANK: {wanted})" if wanted != preferred else ""
        obstacle = cuda_obstacle() if preferred.startswith("cuda") else None
        raise ValueError(
            f"`device` must be auto, cuda or one of {', '.join(present)} on this machine, "
            f"but is {preferred}{source} instead.{f' {obstacle}' if obstacle else ''}"
        )

    device = torch.device(wanted)
    if device.type == "cuda":
        info = _cuda_info(device, device_count=gpus)
        _check_kernels(info)
        return info
    return DeviceInfo(
        device=device,
        name=_cpu_model() if device.type == "cpu" else "Apple GPU",
        compute_capability=None,
        supports_tf32=False,
        supports_bf16=device.type == "cpu" and _cpu_has_fast_bf16(),
        supports_fp16=False,
        memory_bytes=psutil.virtual_memory().total,
        device_count=gpus,
    )


def cuda_obstacle() -> str | None:
    """Say why a PyTorch that is built for CUDA uses no GPU; None if it uses one or is built without."""
    if torch.version.cuda is None or torch.cuda.is_available():
        return None
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    reason = (
        f"CUDA_VISIBLE_DEVICES={hidden!r} may hide them"
        if hidden is not None
        else f"there may be no NVIDIA driver, or one too old for CUDA {torch.version.cuda} (nvidia-smi)"
    )
    return f"PyTorch {torch.__version__} is built for CUDA but finds no GPUs: {reason}."


def _check_kernels(info: DeviceInfo) -> None:
    """Refuse a GPU that this build of PyTorch has no kernels for, such as a V100 with CUDA 13.

    Kernels run on GPUs of the same major and the same or a higher minor compute capability
    (`sm_80` on 8.6), intermediate code (`compute_90`) on all later GPUs.

    Raises:
        ValueError: with the architectures that the build has.
    """
    if torch.version.hip is not None or info.compute_capability is None:
        return
    built_for = torch.cuda.get_arch_list()
    found = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name) for name in built_for]
    known = [(one[1], (int(one[2]), int(one[3]))) for one in found if one]
    runs = any(
        capability <= info.compute_capability
        and (kind == "compute" or capability[0] == info.compute_capability[0])
        for kind, capability in known
    )
    if known and not runs:
        major, minor = info.compute_capability
        raise ValueError(
            f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) has no kernels for {info.device}, "
            f"{info.name}, whose compute capability is {major}.{minor}; it has {', '.join(built_for)}. "
            "Install PyTorch built for an older or newer CUDA (https://pytorch.org/get-started), or use "
            "`training.device=cpu`."
        )


def _cuda_info(device: torch.device, *, device_count: int) -> DeviceInfo:
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    return DeviceInfo(
        device=device,
        name=properties.name,
        compute_capability=capability,
        supports_tf32=torch.version.hip is None and capability >= (8, 0),
        supports_bf16=capability >= (8, 0),
        supports_fp16=True,
        memory_bytes=properties.total_memory,
        device_count=device_count,
    )


def _cpu_has_fast_bf16() -> bool:
    # Without these instructions PyTorch emulates bf16, about a hundred times slower than fp32.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_tile"))


def set_tf32(enabled: bool) -> None:
    """Allow or forbid TF32 (10-bit mantissa) in fp32 matrix products and convolutions.

    Uses the switches that every PyTorch from 2.8 on has. The newer `torch.backends.fp32_precision`
    makes reading the older ones an error, and `torch.compile` still reads them.
    """
    torch.set_float32_matmul_precision("high" if enabled else "highest")
    torch.backends.cudnn.allow_tf32 = enabled


def get_optimal_dataloader_kwargs(
    *,
    device: torch.device,
    num_workers: int | None = None,
    pin_memory: bool | None = None,
    prefetch_factor: int | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Choose how batches are loaded (`training.loading`); None means "choose for me".

    Training on CPU gets no workers: it keeps every core busy itself, and the data is tokenised
    beforehand. On CUDA each process gets up to four, from its share of the cores. Arguments without
    effect are left out: pinning without CUDA, prefetching without workers.

    Args:
        device: where batches go.
        num_workers: worker processes.
        pin_memory: copy batches through page-locked memory (CUDA only).
        prefetch_factor: batches each worker keeps ready.
        timeout: seconds to wait for a batch from a worker; None: for ever.

    Raises:
        ValueError: if `num_workers` is negative.
    """
    on_cuda = device.type == "cuda"
    if num_workers is None:
        num_workers = min(_MAX_AUTO_WORKERS, _cores_per_gpu()) if on_cuda else 0
    if num_workers < 0:
        raise ValueError(f"`num_workers` must be 0 or more, but is {num_workers} instead.")
    kwargs: dict[str, Any] = {
        "num_workers": num_workers,
        "pin_memory": on_cuda and pin_memory is not False,
    }
    if num_workers > 0:
        if sys.platform == "linux":
            # A worker shares the tokenised data instead of receiving a copy, model and all.
            kwargs["multiprocessing_context"] = "fork"
        kwargs["prefetch_factor"] = _PREFETCH_FACTOR if prefetch_factor is None else prefetch_factor
        if timeout is not None:
            kwargs["timeout"] = timeout
    return kwargs


def _cores_per_gpu() -> int:
    gpus = max(torch.cuda.device_count(), 1)
    return _available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", gpus))


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: the cores this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def system_info() -> dict[str, Any]:
    """Describe the software and hardware that results depend on, as JSON-able values.

    Sizes are in bytes. Holds no host name, user name or path, so that it can be published.
    """
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            gpus.append(
                {
                    "name": properties.name,
                    "memory_bytes": properties.total_memory,
                    "compute_capability": f"{properties.major}.{properties.minor}",
                }
            )
    return {
        "python": platform.python_version(),
        "os": platform.platform(),
        "cpu": {
            "model": _cpu_model(),
            "cores_physical": psutil.cpu_count(logical=False),
            "cores_logical": psutil.cpu_count(logical=True),
            "cores_available": _available_cores(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "fast_bf16": _cpu_has_fast_bf16(),
        },
        "memory_bytes": psutil.virtual_memory().total,
        "torch": {
            "version": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        },
        "openmp": {name: os.environ[name] for name in _OPENMP_VARIABLES if name in os.environ},
        "gpus": gpus,
        "mps": torch.backends.mps.is_available(),
    }


def describe_system(info: Mapping[str, Any]) -> str:
    """Return what `system_info()` found as lines for people."""
    cpu, torch_info = info["cpu"], info["torch"]
    openmp = " ".join(f"{name}={value}" for name, value in info["openmp"].items())
    lines = [
        f"Python        {info['python']}",
        f"OS            {info['os']}",
        f"CPU           {cpu['model']}",
        f"  cores       {cpu['cores_physical'] or 'unknown'} physical, {cpu['cores_logical']} "
        f"logical, {cpu['cores_available']} for this process",
        f"  capability  {cpu['capability']}, fast bf16: {'yes' if cpu['fast_bf16'] else 'no'}",
        f"RAM           {_gibibytes(info['memory_bytes'])}",
        f"PyTorch       {torch_info['version']}, {torch_info['threads']} threads",
        f"OpenMP        {openmp or 'no settings'}",
        f"CUDA          {torch_info['cuda'] or 'none'}",
        f"cuDNN         {torch_info['cudnn'] or 'none'}",
        f"MPS           {'yes' if info['mps'] else 'no'}",
    ]
    lines += [
        f"GPU {index:<10}{gpu['name']}, {_gibibytes(gpu['memory_bytes'])}, "
        f"compute capability {gpu['compute_capability']}"
        for index, gpu in enumerate(info["gpus"])
    ] or ["GPU           none"]
    return "\n".join(lines)


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), flags=re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
