import multiprocessing
import os
import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn

from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.training.distributed import DistributedContext, flat_gradients

CPU = torch.device("cpu")


def test_one_process_needs_no_process_group(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    context = DistributedContext(device=CPU)
    assert (context.rank, context.count, context.is_main) == (0, 1, True)
    model = nn.Linear(1, 1)
    context.place(model)
    with context.shared_errors():
        pass
    assert context.any(True)
    assert not context.any(False)
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
            "weights": 10.0,
            "any": [True, False],
            # Rank r has the gradients r + 1 and, in rank 1 alone, 5; nobody has the last one.
            "gradients": [3.0, 5.0, None],
            # Rank 1 fails alone, then both of them, then rank 0 alone and otherwise.
            "errors": [
                ("DataError", "a row of rank 1", rank == 1),
                ("DataError", f"a row of rank {rank}", False),
                [("ZeroDivisionError", "of rank 0"), ("OtherProcessError", "Process 0")][rank],
                ("DataError", "the same row", rank == 1),
            ],
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
    nn.init.constant_(model.weight, 10.0 + rank)
    context.place(model)
    parameters = [nn.Parameter(torch.zeros(2, 1)), nn.Parameter(torch.zeros(())), model.weight]
    parameters[0].grad = torch.full((2, 1), 1.0 + rank)
    parameters[1].grad = torch.tensor(5.0) if rank == 1 else None
    context.sum_gradients(flat_gradients(parameters), parameters)
    found = {
        "place": (context.rank, context.count, context.is_main, context.device),
        "sum": total.tolist(),
        "given": given.tolist(),
        "gathered": context.gather([f"rank {rank}"]),
        "from main": context.from_main(f"rank {rank}"),
        "weights": model.weight.item(),
        "any": [context.any(rank == 1), context.any(False)],
        "gradients": [p.grad if p.grad is None else p.grad.max().item() for p in parameters],
        "errors": [
            _error_of(context, DataError("a row of rank 1") if rank == 1 else None),
            _error_of(context, DataError(f"a row of rank {rank}")),
            _error_of(context, ZeroDivisionError("of rank 0") if rank == 0 else None)[:2],
            _error_of(context, DataError("the same row")),
        ],
    }
    context.wait()
    dist.destroy_process_group()
    results.put((rank, {**found, "left": not dist.is_initialized()}))


def _error_of(context: DistributedContext, own: Exception | None) -> tuple[str, str, bool]:
    """What this process raises if it has this error of its own, and whether another one shows it."""
    try:
        with context.shared_errors():
            if own is not None:
                raise own
    except Exception as error:  # noqa: BLE001  (whatever it is)
        first = str(error).partition(" of this")[0]
        return type(error).__name__, first, getattr(error, "is_shown_elsewhere", False)
    return "none", "", False


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
