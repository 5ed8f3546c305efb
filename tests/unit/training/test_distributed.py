import multiprocessing
import os
import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.training.distributed import DistributedContext

CPU = torch.device("cpu")


def test_one_process_needs_no_process_group(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    context = DistributedContext(device=CPU)
    assert (context.rank, context.count, context.is_main) == (0, 1, True)
    model = nn.Linear(1, 1)
    assert context.wrap(model) is model
    with context.without_sync(model):
        pass
    values = torch.tensor([1.0])
    assert context.sum(values) is values
    assert context.gather("a") == ["a"]
    assert context.from_main("a") == "a"
    context.wait()
    assert not dist.is_initialized()


def test_two_processes_exchange_values_and_gradients_in_one_process_group():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    processes = [
        fork.Process(target=_exchange, args=(rank, port, results), daemon=True) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for rank in (0, 1):
        assert found[rank] == {
            "place": (rank, 2, rank == 0, CPU),
            "sum": [1.0, 20.0],
            "given": [float(rank), 10.0],
            "gathered": [["rank 0"], ["rank 1"]],
            "from main": "rank 0",
            # The examples of rank r are 1 + r (alone), then 10 * (1 + r) (averaged with the first).
            "gradients": [1.0 + rank, ((1 + 10) + (2 + 20)) / 2],
            "buffers travel": False,
            "left": True,
        }


def _exchange(rank: int, port: int, results: multiprocessing.Queue) -> None:
    place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    first = DistributedContext(device=CPU)
    first.wait()
    context = DistributedContext(device=CPU)  # of a second training
    given = torch.tensor([float(rank), 10.0])
    total = context.sum(given)
    model = nn.Linear(1, 1, bias=False)
    model.register_buffer("positions", torch.arange(3))
    wrapped = context.wrap(model)
    gradients = []
    with context.without_sync(wrapped):
        wrapped(torch.tensor([[1.0 + rank]])).sum().backward()
    gradients.append(model.weight.grad.item())
    wrapped(torch.tensor([[10.0 * (1 + rank)]])).sum().backward()
    gradients.append(model.weight.grad.item())
    found = {
        "place": (context.rank, context.count, context.is_main, context.device),
        "sum": total.tolist(),
        "given": given.tolist(),
        "gathered": context.gather([f"rank {rank}"]),
        "from main": context.from_main(f"rank {rank}"),
        "gradients": gradients,
        "buffers travel": wrapped.will_sync_module_buffers(),
    }
    context.wait()
    dist.destroy_process_group()
    results.put((rank, {**found, "left": not dist.is_initialized()}))


def test_on_gpus_each_process_has_that_of_its_local_rank(monkeypatch):
    calls = []
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(device))
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, device_id: calls.append((backend, device_id))
    )
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    context = DistributedContext(device=torch.device("cuda:0"))
    own = torch.device("cuda:1")
    assert calls == [own, ("nccl", own)]
    assert (context.rank, context.count, context.device) == (3, 4, own)


def test_processes_that_cannot_connect_are_told_what_is_missing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(
        ConfigError, match=r"2 processes .*cannot connect.*MASTER_ADDR[\s\S]*torchrun"
    ):
        DistributedContext(device=CPU)


def test_several_processes_need_cpus_or_cuda_gpus(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match=r"on mps; set `training\.device=cpu`"):
        DistributedContext(device=torch.device("mps"))


def test_processes_connected_over_nccl_cannot_go_on_with_the_cpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    with pytest.raises(ConfigError, match=r"training\.device=cuda"):
        DistributedContext(device=CPU)
