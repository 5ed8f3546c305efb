import errno
import pickle
from pathlib import Path

import pytest
import torch

from psy_agents_noaug.errors import CheckpointError, StorageError
from psy_agents_noaug.training import checkpoint as checkpoint_module
from psy_agents_noaug.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    weights_sha256,
)


def make_checkpoint(**changes) -> Checkpoint:
    torch.manual_seed(0)
    parts = {
        "task": "criteria",
        "step": 7,
        "config": {"seed": 1, "model": {"lora": None, "rates": [0.5, 1e-5]}},
        "metadata": {"classes": ["not met", "met"], "encoder_files": {"config.json": "{é🐕}"}},
        "weights": {"a.weight": torch.randn(3, 2), "b": torch.ones(2).bfloat16()},
        "decision_rule": {"thresholds": {"A.1": 0.25}},
        "metrics": {"f1_macro": None, "f1_macro_undefined": "no pairs"},
        "resume": {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "seen": (1, 2)},
    }
    return Checkpoint(**(parts | changes))


@pytest.fixture
def path(tmp_path) -> Path:
    file = tmp_path / "last_checkpoint.pt"
    save_checkpoint(file, make_checkpoint())
    return file


def test_a_checkpoint_is_read_as_it_was_written(path):
    saved, loaded = make_checkpoint(), load_checkpoint(path, task="criteria")
    for name in ("task", "step", "config", "metadata", "decision_rule", "metrics"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert {n: t.dtype for n, t in loaded.weights.items()} == {
        "a.weight": torch.float32,
        "b": torch.bfloat16,
    }
    assert weights_sha256(loaded.weights) == weights_sha256(saved.weights)
    assert loaded.resume["seen"] == (1, 2)
    assert loaded.resume["optimizer"]["state"][0]["step"] == 3.0


def test_plain_torch_reads_a_checkpoint_without_running_anything(path):
    payload = torch.load(path, weights_only=True)
    assert payload["format_version"] == 4
    assert torch.equal(payload["weights"]["b"], torch.ones(2).bfloat16())


def test_any_changed_byte_is_refused(path):
    content = path.read_bytes()
    positions = {*range(0, len(content), -(-len(content) // 150)), *range(-50, 0)}
    assert len(positions) > 150
    for number, position in enumerate(positions):
        changed = bytearray(content)
        changed[position] ^= 1 << number % 8
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"is damaged|is truncated"):
            load_checkpoint(path, task="criteria")
    path.write_bytes(content)
    assert load_checkpoint(path, task="criteria").step == 7


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.3, 0.9, 0.999, 0.9999])
def test_a_truncated_file_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(path, task="criteria")


@pytest.mark.parametrize("more", [b"\0", b"appended"])
def test_a_file_with_something_appended_is_refused(path, more):
    path.write_bytes(path.read_bytes() + more)
    with pytest.raises(CheckpointError, match="truncated, or is not a checkpoint"):
        load_checkpoint(path, task="criteria")


def test_a_file_of_plain_torch_is_no_checkpoint(path):
    torch.save({"weights": {}}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of this project"):
        load_checkpoint(path, task="criteria")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        load_checkpoint(tmp_path / "none.pt", task="criteria")
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        load_checkpoint(tmp_path, task="criteria")


def test_a_checkpoint_of_another_task_is_refused(path):
    with pytest.raises(CheckpointError, match=r"of the task `evidence`, but is of `criteria`"):
        load_checkpoint(path, task="evidence")


def test_another_format_version_is_refused(path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "FORMAT_VERSION", 5)
    with pytest.raises(CheckpointError, match="must be 5, but is 4 instead"):
        load_checkpoint(path, task="criteria")


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def test_objects_that_could_run_code_are_refused_though_the_checksum_fits(path):
    save_checkpoint(path, make_checkpoint(config={"evil": Evil()}))
    with pytest.raises(CheckpointError, match="could run code"):
        load_checkpoint(path, task="criteria")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_a_failure_while_writing_leaves_the_old_file_whole(path, monkeypatch):
    before = path.read_bytes()

    def half(payload, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(StorageError, match="the disk is full"):
            save_checkpoint(path, make_checkpoint(step=8))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before
    save_checkpoint(path, make_checkpoint(step=9))
    assert load_checkpoint(path, task="criteria").step == 9
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_file_is_on_disk_before_it_gets_its_name(path, monkeypatch):
    events = []
    fsync, replace = checkpoint_module.os.fsync, Path.replace
    monkeypatch.setattr("os.fsync", lambda fd: (events.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(
        Path, "replace", lambda old, new: (events.append("rename"), replace(old, new))[1]
    )
    save_checkpoint(path, make_checkpoint())
    assert events[:2] == ["fsync", "rename"]


@pytest.mark.parametrize(
    "weights",
    [
        {"b": torch.zeros(2, 2)},
        {"a": torch.zeros(4)},
        {"a": torch.zeros(1, 4)},
        {"a": torch.zeros(2, 2, dtype=torch.int32)},
        {"a": torch.tensor([[0.0, 0.0], [0.0, -0.0]])},
        {"a": torch.zeros(2, 2), "b": torch.zeros(0)},
        {},
    ],
)
def test_the_hash_of_weights_sees_names_types_shapes_and_bits(weights):
    assert weights_sha256(weights) != weights_sha256({"a": torch.zeros(2, 2)})


def test_the_hash_of_weights_does_not_see_order_strides_or_gradients():
    tensor = torch.arange(6.0).reshape(2, 3)
    one = weights_sha256({"a": tensor, "b": torch.tensor(1)})
    strided = tensor.t().contiguous().t().requires_grad_()
    assert not strided.is_contiguous()
    assert weights_sha256({"b": torch.tensor(1), "a": strided}) == one
