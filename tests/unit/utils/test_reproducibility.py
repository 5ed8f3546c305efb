import json
import logging
import os
import random
import re
import socket
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from psy_agents_noaug.utils import reproducibility
from psy_agents_noaug.utils.reproducibility import (
    describe_system,
    get_device,
    get_optimal_dataloader_kwargs,
    set_seed,
    set_tf32,
    system_info,
)

CUDA = torch.device("cuda:0")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def unchanged_torch(monkeypatch):
    """Put back every global switch that the functions under test turn."""
    for name in ("PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "")
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    matmul = torch.get_float32_matmul_precision()
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = before
    torch.set_float32_matmul_precision(matmul)
    torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture
def four_gpus(monkeypatch):
    class Properties:
        name, major, minor, total_memory = "Tesla T4", 7, 5, 16 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    return Properties


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def draws():
    return [random.random(), float(np.random.rand()), *torch.rand(3).tolist()]


def test_the_same_seed_gives_the_same_draws_and_another_seed_gives_others():
    set_seed(7)
    first = draws()
    set_seed(7)
    again = draws()
    set_seed(8)
    other = draws()

    assert again == first
    assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_cannot_take_is_refused(seed):
    with pytest.raises(ValueError, match=r"`seed` must be between 0 and 2\*\*32 - 1, but is"):
        set_seed(seed)


def test_the_largest_seed_is_accepted():
    set_seed(2**32 - 1)
    assert torch.initial_seed() == 2**32 - 1


def test_child_processes_get_the_seed_and_cublas_a_reproducible_workspace():
    set_seed(7)

    assert os.environ["PYTHONHASHSEED"] == "7"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_other_reproducible_cublas_workspace_is_kept(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_seed(7)

    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_cublas_is_left_alone_when_determinism_is_not_asked_for():
    set_seed(7, deterministic=False)

    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ""


def test_setting_the_cublas_workspace_too_late_is_logged(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with caplog.at_level(logging.WARNING):
        set_seed(7)

    assert "CUDA was in use before CUBLAS_WORKSPACE_CONFIG was set" in caplog.text


def test_determinism_switches_the_cudnn_benchmark_off_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        set_seed(7, deterministic=True, cudnn_benchmark=True)

    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert "cudnn_benchmark is switched off" in caplog.text


def test_determinism_does_not_fill_every_new_tensor():
    set_seed(7, deterministic=True)
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_without_determinism_the_cudnn_benchmark_is_as_asked():
    set_seed(7, deterministic=True)
    set_seed(7, deterministic=False, cudnn_benchmark=True)

    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.benchmark


def test_warn_only_reaches_torch():
    set_seed(7, warn_only=True)

    assert torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.usefixtures("no_gpu")
def test_auto_is_the_cpu_where_there_is_nothing_else():
    info = get_device()

    assert info.device == CPU
    assert info.device_count == 0
    assert info.compute_capability is None
    assert info.memory_bytes > 2**28
    assert info.describe().startswith("cpu: ")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("preferred", ["tpu", "cuda", "cuda:0", "mps", "cpu:1", ""])
def test_a_device_that_this_machine_lacks_is_refused(preferred):
    with pytest.raises(ValueError, match=rf"`device` must be .*cpu.*, but is {preferred}"):
        get_device(preferred)


@pytest.mark.usefixtures("four_gpus")
def test_auto_is_the_first_gpu_or_the_process_own_under_torchrun(monkeypatch):
    assert get_device().device == CUDA
    monkeypatch.setenv("LOCAL_RANK", "3")

    assert get_device().device == torch.device("cuda:3")
    assert get_device("cuda").device == torch.device("cuda:3")
    assert get_device("cuda:1").device == torch.device("cuda:1")
    assert get_device("cpu").device == CPU


@pytest.mark.usefixtures("four_gpus")
def test_a_local_rank_beyond_the_gpus_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match=r"but is auto \(from LOCAL_RANK: cuda:4\) instead"):
        get_device()


def test_bf16_and_tf32_need_an_ampere_gpu(four_gpus, monkeypatch):
    turing = get_device("cuda:0")
    monkeypatch.setattr(four_gpus, "major", 8)
    monkeypatch.setattr(four_gpus, "minor", 0)
    ampere = get_device("cuda:0")

    assert turing.supports_fp16
    assert not turing.supports_bf16
    assert not turing.supports_tf32
    assert ampere.supports_fp16
    assert ampere.supports_bf16
    assert ampere.supports_tf32
    assert turing.describe() == (
        "cuda:0: Tesla T4, 16.0 GiB, compute capability 7.5, 4 GPU(s) in this machine, "
        "fast precisions: fp32, fp16"
    )


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "fast"),
    [(False, False, False), (True, False, True), (False, True, True)],
)
def test_bf16_on_a_cpu_needs_its_instructions(monkeypatch, avx512_bf16, amx, fast):
    found = {"avx2": True, "avx512_bf16": avx512_bf16, "amx_tile": amx}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)

    assert get_device("cpu").supports_bf16 is fast


def test_tf32_goes_on_and_off_for_products_and_convolutions():
    set_tf32(True)
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    set_tf32(False)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_choice_of_dataloader_arguments_is_one_that_dataloader_accepts(num_workers):
    kwargs = get_optimal_dataloader_kwargs(
        device=CPU,
        num_workers=num_workers,
        pin_memory=True,
        prefetch_factor=3,
    )
    loader = DataLoader([1, 2, 3], **kwargs)

    assert loader.num_workers == num_workers
    assert loader.pin_memory is False
    assert loader.prefetch_factor == (3 if num_workers else None)


def test_training_on_the_cpu_gets_no_workers():
    assert get_optimal_dataloader_kwargs(device=CPU) == {"num_workers": 0, "pin_memory": False}


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("cores", "processes", "workers"),
    [(64, None, 4), (8, None, 2), (3, None, 0), (8, "1", 4), (2, "2", 1)],
)
def test_gpu_training_shares_the_cores_among_its_processes(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(reproducibility, "_available_cores", lambda: cores)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    kwargs = get_optimal_dataloader_kwargs(device=CUDA)

    assert kwargs["num_workers"] == workers
    assert kwargs["pin_memory"] is True
    assert ("prefetch_factor" in kwargs) is (workers > 0)


def test_what_the_user_sets_is_kept():
    assert get_optimal_dataloader_kwargs(
        device=CUDA,
        num_workers=1,
        pin_memory=False,
        prefetch_factor=7,
        timeout=2.5,
    ) == {
        **({"multiprocessing_context": "fork"} if sys.platform == "linux" else {}),
        "num_workers": 1,
        "pin_memory": False,
        "prefetch_factor": 7,
        "timeout": 2.5,
    }


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(ValueError, match="`num_workers` must be 0 or more, but is -1 instead"):
        get_optimal_dataloader_kwargs(device=CPU, num_workers=-1)


def test_system_info_is_json_without_host_user_or_path():
    text = json.dumps(system_info(), allow_nan=False)

    assert str(torch.__version__) in text
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)
    assert os.path.expanduser("~") not in text  # noqa: PTH111
    assert os.fspath(os.getcwd()) not in text  # noqa: PTH109


@pytest.mark.usefixtures("four_gpus")
def test_the_described_system_names_versions_cores_and_every_gpu():
    text = describe_system(system_info())

    assert f"PyTorch       {torch.__version__}, {torch.get_num_threads()} threads\n" in text
    assert text.endswith("GPU 3         Tesla T4, 16.0 GiB, compute capability 7.5")
    assert re.search(r"^  cores +\S+ physical, \d+ logical, \d+ for this process$", text, re.M)


@pytest.mark.usefixtures("no_gpu")
def test_the_described_system_says_when_there_is_no_gpu():
    assert describe_system(system_info()).endswith("GPU           none")
