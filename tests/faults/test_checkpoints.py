"""Checkpoints that are cut short, altered, incomplete or hostile are refused with one message."""

import errno
import hashlib
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from psy_agents_noaug.cli import main
from psy_agents_noaug.errors import CheckpointError
from psy_agents_noaug.training.checkpoint import (
    _TAIL,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)

Refusal = Callable[..., str]


class _TouchesAFile:
    """What an attacker would put into a checkpoint: unpickling it runs a command."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def test_a_checkpoint_must_be_given_and_be_there(refusal_of_evaluation: Refusal) -> None:
    assert "`checkpoint` must be given" in refusal_of_evaluation()
    told = refusal_of_evaluation("checkpoint=/nowhere/best.pt", "split=val")
    assert told == "CheckpointError: There is no checkpoint at /nowhere/best.pt.\n"


def test_what_to_evaluate_is_checked_as_a_whole(refusal_of_evaluation: Refusal) -> None:
    told = refusal_of_evaluation("split=validation")
    assert "`checkpoint` must be given" in told
    assert "`split` is 'validation'" in told


def test_an_unknown_key_is_refused_in_an_evaluation_too(
    refusal_of_evaluation: Refusal, checkpoint: Path
) -> None:
    told = refusal_of_evaluation(f"checkpoint={checkpoint}", "training.eval_batch_sise=8")
    assert "`training.eval_batch_sise` is not a known key" in told


def test_a_checkpoint_of_another_task_is_refused(
    refusal_of_evaluation: Refusal, tmp_path: Path
) -> None:
    path = tmp_path / "evidence.pt"
    save_checkpoint(path, Checkpoint(task="evidence", step=1, config={}, metadata={}, weights={}))
    told = refusal_of_evaluation(f"checkpoint={path}")
    assert "must be a checkpoint of the task `criteria`, but is of `evidence` instead" in told


def test_a_checkpoint_of_another_division_of_the_corpus_is_refused(
    refusal_of_evaluation: Refusal, finished: Path
) -> None:
    told = refusal_of_evaluation(f"checkpoint={finished}", "data.splits=null")
    assert "posts of test in training, so figures on it would be too good" in told


@pytest.mark.faults(
    "the secret of a run is absent, damaged or another run's",
    "another division is refused; on other corpora it says that it cannot check",
)
@pytest.mark.parametrize("secret", [None, "", "0" * 63, "0" * 64, "\0\xff"])
def test_another_division_is_refused_where_the_secret_of_the_run_is_lost(
    refusal_of_evaluation: Refusal, finished: Path, tmp_path: Path, secret: str | None
) -> None:
    run = shutil.copytree(finished, tmp_path / "copy")
    (run / "seen_posts.key").unlink()
    if secret is not None:
        (run / "seen_posts.key").write_text(secret)
    told = refusal_of_evaluation(f"checkpoint={run}", "data.splits=null")
    assert "Whether training has seen posts of test cannot be checked" in told
    assert "divided in another way" in told
    reason = (
        "not the one that its hashes were made with" if secret == "0" * 64 else "seen_posts.key is"
    )
    assert reason in told


@pytest.mark.parametrize("kept", [0, 1, 60, 0.5, -1, -60])
@pytest.mark.faults("a checkpoint is cut short", "refused with one message")
def test_a_truncated_checkpoint_is_refused(
    refusal_of_evaluation: Refusal, checkpoint: Path, kept: float
) -> None:
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
    assert f"{checkpoint} is truncated" in refusal_of_evaluation(f"checkpoint={checkpoint}")


@pytest.mark.faults("a bit of a checkpoint is flipped", "refused with one message")
def test_300_flipped_bits_are_noticed(checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    source = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[source.randrange(len(content))] ^= 1 << source.randrange(8)
        checkpoint.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"is damaged|checksum is missing"):
            load_checkpoint(checkpoint)
    checkpoint.write_bytes(content)
    assert load_checkpoint(checkpoint).weights


@pytest.mark.faults("a bit of a checkpoint is flipped", "refused with one message")
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_a_flipped_bit_anywhere_is_told(
    refusal_of_evaluation: Refusal, checkpoint: Path, place: float
) -> None:
    content = bytearray(checkpoint.read_bytes())
    content[int(place * len(content))] ^= 1
    checkpoint.write_bytes(content)
    told = refusal_of_evaluation(f"checkpoint={checkpoint}")
    assert f"{checkpoint} is damaged: its content does not match its checksum" in told


@pytest.mark.faults("a bit of a checkpoint is flipped", "refused with one message")
@pytest.mark.parametrize("from_the_end", [1, 2, 64, 65, 80, 64 + len(_TAIL), 65 + len(_TAIL)])
def test_a_flipped_bit_of_the_checksum_itself_is_noticed(
    refusal_of_evaluation: Refusal, checkpoint: Path, from_the_end: int
) -> None:
    content = bytearray(checkpoint.read_bytes())
    content[-from_the_end] ^= 0x80
    checkpoint.write_bytes(content)
    told = refusal_of_evaluation(f"checkpoint={checkpoint}")
    assert re.search(r"is damaged|checksum is missing", told)


@pytest.mark.faults("a checkpoint holds a pickle that runs code", "refused, and not run")
@pytest.mark.parametrize("part", ["config", "metadata", "decision_rule", "metrics", "weights"])
def test_a_checkpoint_that_would_run_code_is_refused_though_its_checksum_is_right(
    refusal_of_evaluation: Refusal, tmp_path: Path, part: str
) -> None:
    trap, path = tmp_path / "sprung", tmp_path / "evil.pt"
    parts: dict[str, Any] = {"config": {}, "metadata": {}, "weights": {}}
    parts[part] = {"x": _TouchesAFile(trap)}
    save_checkpoint(path, Checkpoint(task="criteria", step=1, **parts))
    told = refusal_of_evaluation(f"checkpoint={path}")
    assert "is refused: it holds objects other than tensors and plain values" in told
    assert not trap.exists()


@pytest.mark.faults("a checkpoint holds a pickle that runs code", "refused, and not run")
@pytest.mark.parametrize("with_checksum", [False, True])
def test_a_bare_pickle_is_refused_and_not_run(
    refusal_of_evaluation: Refusal, tmp_path: Path, with_checksum: bool
) -> None:
    trap, path = tmp_path / "sprung", tmp_path / "evil.pt"
    content = pickle.dumps(_TouchesAFile(trap), protocol=2)
    digest = hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content + (_TAIL + digest if with_checksum else b""))
    told = refusal_of_evaluation(f"checkpoint={path}")
    assert ("is refused" if with_checksum else "its checksum is missing") in told
    assert not trap.exists()


def test_the_trap_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_TouchesAFile(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


@pytest.mark.faults("the last checkpoint is cut short", "not resumed from; one message")
def test_a_damaged_checkpoint_is_not_resumed_from(
    refusal_of_training: Refusal, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "copy" / "criteria" / "done"
    shutil.copytree(finished, run)
    last = run / "checkpoints" / "last_checkpoint.pt"
    last.write_bytes(last.read_bytes()[:-1])
    told = refusal_of_training(f"resume={run}", f"output_dir={tmp_path / 'copy'}")
    assert told.startswith(f"CheckpointError: {last} is truncated")


@pytest.mark.faults(
    "the best checkpoint of a run that goes on is absent, cut short or of another run",
    "refused at the start, with what to do",
)
@pytest.mark.parametrize("how", ["absent", "cut", "another run's", "of an earlier step"])
def test_a_run_whose_best_weights_are_lost_does_not_go_on(
    refusal_of_training: Refusal, finished: Path, tmp_path: Path, how: str
) -> None:
    run = tmp_path / "copy" / "criteria" / "done"
    shutil.copytree(finished, run)
    best = run / "checkpoints" / "best_checkpoint.pt"
    good = load_checkpoint(best)
    if how == "absent":
        best.unlink()
    elif how == "cut":
        best.write_bytes(best.read_bytes()[:-1])
    else:
        other = {"config": good.config | {"seed": 7}} if "another" in how else {"step": 1}
        save_checkpoint(best, replace(good, **other))
    told = refusal_of_training(f"resume={run}", f"output_dir={tmp_path / 'copy'}")
    assert told.startswith("CheckpointError: ")
    assert str(best) in told
    assert f"remove {run}/checkpoints/last_checkpoint.pt" in told


@pytest.mark.parametrize("key", ["model.pooling=cls", "model.head_layers=2", "task.loss=focal"])
def test_a_checkpoint_is_not_evaluated_as_another_model(
    refusal_of_evaluation: Refusal, checkpoint: Path, key: str
) -> None:
    told = refusal_of_evaluation(f"checkpoint={checkpoint}", key)
    assert f"`{key.split('=')[0]}`" in told


def _inner_keys(values: dict[str, Any], *path: str) -> list[tuple[str, ...]]:
    found = [(*path, key) for key in values]
    for key, value in values.items():
        if isinstance(value, dict) and len(path) < 2:
            found += _inner_keys(value, *path, key)
    return found


def _without(values: Any, path: tuple[str | int, ...]) -> Any:
    """Return a copy of nested mappings and lists without the value at `path`."""
    name, *rest = path
    if isinstance(values, list):
        return [_without(v, tuple(rest)) if i == name else v for i, v in enumerate(values)]
    if not rest:
        return {key: value for key, value in values.items() if key != name}
    return values | {name: _without(values[name], tuple(rest))}


@pytest.mark.slow
@pytest.mark.faults("a checkpoint lacks an inner key", "refused with one message, or not needed")
def test_a_checkpoint_that_lacks_any_inner_key_is_evaluated_or_refused(
    finished: Path, tmp_path: Path, own_logging: None, capfd: pytest.CaptureFixture[str]
) -> None:
    good = load_checkpoint(finished / "checkpoints" / "best_checkpoint.pt")
    parts = {name: getattr(good, name) for name in ("metadata", "decision_rule", "config")}
    paths = [path for path in _inner_keys(parts) if len(path) > 1]
    paths = [path for path in paths if path[0] != "config" or len(path) == 2]
    parts["weights"] = good.weights
    paths.append(("weights", next(iter(good.weights))))
    refused = []
    for number, path in enumerate(paths):
        file = tmp_path / f"{number}.pt"
        save_checkpoint(file, replace(good, **_without(parts, path)))
        code = main(["eval", "task=criteria", f"checkpoint={file}", "split=val", "tracking=none"])
        told = capfd.readouterr().err
        assert code in (0, 2), path
        assert "Traceback" not in told
        assert told.count("Error: ") <= 2 * (code == 2), told
        refused += [".".join(path)] * (code == 2)
        file.unlink()
    needed = ["metadata.criteria", "metadata.fingerprints", "metadata.encoder_files"]
    assert set(needed) <= set(refused)
    assert {"decision_rule.thresholds", "decision_rule.thresholds.A.1", "config.data"} <= set(
        refused
    )


@pytest.mark.faults("the last checkpoint lacks an inner key", "not resumed from; one message")
@pytest.mark.parametrize(
    "path",
    [
        ("resume",),
        ("resume", "optimizer"),
        ("resume", "scheduler"),
        ("resume", "scheduler", "last_epoch"),
        ("resume", "scheduler", "base_lrs"),
        ("resume", "scaler"),
        ("resume", "early_stopping"),
        ("resume", "early_stopping", "waited"),
        ("resume", "state"),
        ("resume", "state", "max_tokens"),
        ("resume", "state", "step"),
        ("resume", "optimizer", "state"),
        ("resume", "optimizer", "state", 0, "exp_avg"),
        ("resume", "optimizer", "param_groups", 0, "lr"),
        ("metadata", "fingerprints"),
        ("metadata", "fingerprints", "corpus"),
        ("metadata", "encoder_files"),
        ("metadata", "encoder_files", "config.json"),
    ],
)
def test_a_last_checkpoint_that_lacks_an_inner_key_is_not_resumed_from(
    refusal_of_training: Refusal, finished: Path, tmp_path: Path, path: tuple[str | int, ...]
) -> None:
    run = tmp_path / "copy" / "criteria" / "done"
    shutil.copytree(finished, run)
    last = run / "checkpoints" / "last_checkpoint.pt"
    good = load_checkpoint(last)
    assert good.resume is not None
    parts = {"resume": good.resume, "metadata": good.metadata}
    save_checkpoint(last, replace(good, **{"resume": None, **_without(parts, path)}))
    told = refusal_of_training(f"resume={run}", f"output_dir={tmp_path / 'copy'}")
    assert told.startswith("CheckpointError: ")
    assert path[0] == "metadata" or len(path) == 1 or str(path[-1]) in told


@pytest.mark.faults("the last checkpoint lacks an inner key", "not resumed from; one message")
def test_a_last_checkpoint_without_the_moments_of_adamw_is_not_resumed_from(
    refusal_of_training: Refusal, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "copy" / "criteria" / "done"
    shutil.copytree(finished, run)
    last = run / "checkpoints" / "last_checkpoint.pt"
    good = load_checkpoint(last)
    assert good.resume is not None
    optimizer = {**good.resume["optimizer"], "state": {}}
    save_checkpoint(last, replace(good, resume={**good.resume, "optimizer": optimizer}))
    told = refusal_of_training(f"resume={run}", f"output_dir={tmp_path / 'copy'}")
    assert "the moments of AdamW" in told


@pytest.mark.faults("a part of a checkpoint is of another type", "refused with one message")
@pytest.mark.parametrize(
    ("part", "value"),
    [("config", None), ("metadata", []), ("weights", torch.zeros(2)), ("step", "7"), ("task", 1)],
)
def test_a_part_of_another_type_is_refused(
    refusal_of_evaluation: Refusal, checkpoint: Path, part: str, value: Any
) -> None:
    save_checkpoint(checkpoint, replace(load_checkpoint(checkpoint), **{part: value}))
    told = refusal_of_evaluation(f"checkpoint={checkpoint}")
    assert f"{checkpoint} is refused: {part} must be of another type" in told


@pytest.mark.faults(
    "the folder of a checkpoint is read-only", "refused before anything is evaluated"
)
def test_an_evaluation_in_a_read_only_folder_is_refused(
    refusal_of_evaluation: Refusal, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        if path.is_relative_to(checkpoint.parent / "evaluations"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    told = refusal_of_evaluation(f"checkpoint={checkpoint}", "split=val", "tracking=none")
    assert told.startswith(f"StorageError: {checkpoint.parent / 'evaluations'}")
    assert "the file system is read-only" in told


def _with_a_flipped_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[3] ^= 0x80
    weights.write_bytes(content)


def _cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _emptied(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def _with_a_bin_cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    binary = folder / "pytorch_model.bin"
    binary.write_bytes(binary.read_bytes()[:-1000])


def _with_a_bin_of_garbage(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02garbage")


def _with_a_bin_that_runs_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_TouchesAFile(folder / "sprung")))


def _with_a_deep_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 10_000 + "1" + "}" * 10_000)


def _with_a_huge_integer(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("{", '{"a": ' + "9" * 5_000 + ",", 1))


def _with_a_config_of_another_shape(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


def _with_a_deep_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[" * 10_000)


def _with_a_tokenizer_of_another_form(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 1}')


@pytest.mark.faults("a file of the pretrained model is damaged", "refused with one message")
@pytest.mark.parametrize(
    "damage",
    [
        _with_a_flipped_header,
        _cut_short,
        _emptied,
        _with_a_bin_cut_short,
        _with_a_bin_of_garbage,
        _with_a_bin_that_runs_code,
        _with_a_deep_config,
        _with_a_huge_integer,
        _with_a_config_of_another_shape,
        _with_a_deep_tokenizer,
        _with_a_tokenizer_of_another_form,
    ],
)
def test_a_damaged_pretrained_model_is_refused(
    refusal_of_training: Refusal, tiny_encoder: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "model"))
    damage(folder)
    told = refusal_of_training(f"model.pretrained_model={folder}")
    assert told.startswith(f"ConfigError: `model.pretrained_model` '{folder}' cannot be loaded")
    assert not (folder / "sprung").exists()
    assert not (tmp_path / "outputs").exists()
