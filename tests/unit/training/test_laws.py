"""The training laws, on whole runs of the tiny task. Each is a property that a user relies on."""

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from psy_agents_noaug.config.schema import EvaluateConfig, TrainConfig
from psy_agents_noaug.errors import CheckpointError, ConfigError, Interrupted, NonFiniteError
from psy_agents_noaug.models.criteria import CriteriaModel
from psy_agents_noaug.run.evaluate import RunResult, evaluate
from psy_agents_noaug.run.train import train
from psy_agents_noaug.tasks.base import Task, TaskInputs
from psy_agents_noaug.tasks.criteria.task import CriteriaTask
from psy_agents_noaug.tasks.evidence.task import EvidenceTask
from psy_agents_noaug.tasks.joint.task import JointTask
from psy_agents_noaug.training import trainer
from psy_agents_noaug.training.checkpoint import load_checkpoint
from psy_agents_noaug.utils.reproducibility import get_device

MakeConfig = Callable[..., TrainConfig]
Hashes = Callable[[RunResult], tuple[str, str]]
# Attention's key biases have no gradient but rounding, which Adam would scale up to whole updates
# were it not for a larger epsilon.
COMPARABLE = ("model.encoder_dropout=0.0", "model.head_dropout=0.0", "training.adam_epsilon=0.0001")


TASKS = {"criteria": CriteriaTask, "evidence": EvidenceTask, "joint": JointTask}
EVERY_TASK = pytest.mark.parametrize(
    ("task_name", "architecture"),
    [
        ("criteria", "cross_encoder"),
        ("evidence", "cross_encoder"),
        pytest.param("joint", "cross_encoder", marks=pytest.mark.slow),
        pytest.param("criteria", "label_attention", marks=pytest.mark.slow),
        ("joint", "label_attention"),
    ],
)


def _last_weights(result: RunResult) -> dict[str, torch.Tensor]:
    path = result.directory / "checkpoints" / "last_checkpoint.pt"
    return load_checkpoint(path, task=result.directory.parent.name).weights


def _relative_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of a tensor, relative to its norm.

    A bias that shifts all scores of a softmax alike has no gradient but rounding, and stays near zero.
    """
    return max(
        float((one[name] - other[name]).norm() / one[name].norm().clamp_min(1e-3)) for name in one
    )


@EVERY_TASK
def test_two_runs_with_one_seed_are_bit_identical(
    make_config: MakeConfig, weights_of: Hashes
) -> None:
    first, second = (train(make_config(f"run_name={name}")) for name in ("a", "b"))
    assert weights_of(first) == weights_of(second)
    assert first.metrics == second.metrics


def test_another_seed_gives_other_weights(make_config: MakeConfig, weights_of: Hashes) -> None:
    first, second = (train(make_config(f"seed={seed}")) for seed in (1, 2))
    assert weights_of(first) != weights_of(second)


@pytest.mark.parametrize(
    "task_name",
    ["joint", *(pytest.param(t, marks=pytest.mark.slow) for t in ("criteria", "evidence"))],
)
def test_worker_processes_change_nothing(make_config: MakeConfig, weights_of: Hashes) -> None:
    first, second = (train(make_config(f"training.num_workers={n}")) for n in (0, 2))
    assert weights_of(first) == weights_of(second)
    assert first.metrics == second.metrics


@pytest.mark.parametrize(
    ("task_name", "architecture", "seed"),
    [
        ("criteria", "cross_encoder", 0),
        ("evidence", "cross_encoder", 0),
        ("joint", "cross_encoder", 1),
        ("joint", "label_attention", 2),
        ("evidence", "label_attention", 3),  # some weights never have a gradient
        *(
            pytest.param("criteria", "cross_encoder", seed, marks=pytest.mark.slow)
            for seed in range(1, 4)
        ),
    ],
)
def test_a_run_stopped_after_any_step_resumes_to_the_same_weights(
    make_config: MakeConfig,
    weights_of: Hashes,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    seed: int,
) -> None:
    settings = ["training.early_stopping={patience: 3}", "training.eval_steps=3"]
    if architecture == "label_attention":
        settings.append("training.train_batch_size=3")  # a text has many pairs: as many updates
    whole = train(make_config("run_name=whole", *settings))
    stops = sorted(random.Random(seed).sample(range(1, 10), k=3))
    _stop_at(monkeypatch, stops)
    config = make_config("run_name=parts", "resume=auto", *settings)
    for _ in stops:
        with pytest.raises(Interrupted):
            train(config)
    parts = train(config)
    assert weights_of(parts) == weights_of(whole)
    assert parts.metrics == whole.metrics
    assert _history(parts) == _history(whole)


@EVERY_TASK
def test_a_run_in_bf16_resumes_to_the_same_weights(
    make_config: MakeConfig, weights_of: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(make_config("run_name=whole", "training.amp=bf16"))
    _stop_at(monkeypatch, [3])
    config = make_config("run_name=parts", "resume=auto", "training.amp=bf16")
    with pytest.raises(Interrupted):
        train(config)
    parts = train(config)
    assert weights_of(parts) == weights_of(whole)
    assert parts.metrics == whole.metrics


@EVERY_TASK
def test_evaluating_val_in_bf16_gives_the_figures_of_the_training_to_the_last_bit(
    make_config: MakeConfig, task_name: str
) -> None:
    trained = train(make_config("training.amp=bf16"))
    checkpoint = str(trained.directory / "checkpoints" / "best_checkpoint.pt")
    evaluation = EvaluateConfig(checkpoint=checkpoint, split="val")
    evaluated = evaluate(evaluation, task_name=task_name, explicit={})
    assert evaluated.directory == trained.directory
    assert evaluated.metrics == trained.metrics


def test_going_on_in_another_precision_than_auto_chose_before_is_told(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config("run_name=moved", "resume=auto", "training.amp=auto")
    _stop_at(monkeypatch, [2, 3])
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(config)
    assert "began with mixed precision" not in caplog.text
    path = Path(config.output_dir) / "criteria" / "moved" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["mixed_precision"] == ("bf16" if get_device("cpu").supports_bf16 else "off")
    path.write_text(json.dumps({**manifest, "mixed_precision": "fp16"}))
    train(config)
    assert "began with mixed precision fp16 on other hardware" in caplog.text


def _stop_at(monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> None:
    """Send SIGTERM to this process during each of these steps."""
    original = trainer.Trainer._gradients

    def interrupted(self: trainer.Trainer, step: trainer.Step) -> list[torch.Tensor]:
        if self._state.step + 1 in steps:
            signal.raise_signal(signal.SIGTERM)
        return original(self, step)

    monkeypatch.setattr(trainer.Trainer, "_gradients", interrupted)


def _history(result: RunResult) -> list[str]:
    lines = (result.directory / "history.csv").read_text().splitlines()
    timed = [k for k, name in enumerate(lines[0].split(",")) if name.endswith("_per_second")]
    return [
        ",".join(cell for k, cell in enumerate(line.split(",")) if k not in timed) for line in lines
    ]


@pytest.mark.parametrize(
    ("task_name", "seed"),
    [
        ("criteria", 0),
        pytest.param("joint", 1, marks=pytest.mark.slow),
        pytest.param("evidence", 2, marks=pytest.mark.slow),
        *(pytest.param("criteria", seed, marks=pytest.mark.slow) for seed in range(3, 7)),
        *(pytest.param("evidence", seed, marks=pytest.mark.slow) for seed in range(7, 10)),
        *(pytest.param("joint", seed, marks=pytest.mark.slow) for seed in range(10, 13)),
    ],
)
@pytest.mark.faults("SIGKILL in an update or a save", "resumes to the same weights")
def test_a_killed_process_resumes_to_the_same_weights(
    make_config: MakeConfig, weights_of: Hashes, seed: int
) -> None:
    settings = (
        "training.save_steps=4",
        "training.epochs=4",
        "training.eval_steps=3",
        "training.early_stopping=null",
    )
    whole = train(make_config("run_name=whole", *settings))
    config = make_config("run_name=killed", "resume=auto", *settings)
    for victim, step in _kills(seed):
        _run_and_kill(config, victim=victim, step=step)
    resumed = train(config)
    assert weights_of(resumed) == weights_of(whole)
    assert resumed.metrics == whole.metrics


def _kills(seed: int) -> list[tuple[str, int]]:
    """Three ascending steps, and what is killed there: the update, or a save, before its rename."""
    chance = random.Random(seed)
    steps = sorted(chance.sample(range(1, 20), k=3))
    return [(chance.choice(["update", "save"]), step) for step in steps]


def _run_and_kill(config: TrainConfig, *, victim: str, step: int) -> None:
    """Train in a child that SIGKILLs itself at `step`, or at the first save from there on."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_train_until, args=(config, victim, step))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL


def _train_until(config: TrainConfig, victim: str, step: int) -> None:
    original, original_replace = trainer.Trainer._gradients, Path.replace
    position = 0

    def counted(self: trainer.Trainer, batches: trainer.Step) -> list[torch.Tensor]:
        nonlocal position
        losses = original(self, batches)
        position = self._state.step + 1
        if victim == "update" and position == step:
            signal.raise_signal(signal.SIGKILL)
        return losses

    def replaced(self: Path, target: Path) -> None:
        if victim == "save" and position >= step and self.name.endswith(".tmp"):
            signal.raise_signal(signal.SIGKILL)
        original_replace(self, target)

    trainer.Trainer._gradients = counted  # type: ignore[method-assign]
    Path.replace = replaced  # type: ignore[method-assign, assignment]
    train(config)


@EVERY_TASK
def test_micro_batches_do_not_change_the_update(make_config: MakeConfig) -> None:
    results = [
        _last_weights(
            train(
                make_config(f"run_name=m{size}", f"training.micro_batch_size={size}", *COMPARABLE)
            )
        )
        for size in (8, 4, 1)
    ]
    assert _relative_difference(results[0], results[1]) < 1e-4
    assert _relative_difference(results[0], results[2]) < 1e-4


def test_a_mean_of_means_would_be_noticed(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last step of an epoch has six examples; a loss that forgets the count must differ.
    right = _last_weights(train(make_config("run_name=right", *COMPARABLE)))
    original = CriteriaTask.loss
    monkeypatch.setattr(CriteriaTask, "loss", lambda *a: original(*a) / len(a[2]["labels"]))
    wrong = _last_weights(train(make_config("run_name=wrong", *COMPARABLE)))
    assert _relative_difference(right, wrong) > 1e-3


@EVERY_TASK
def test_what_else_is_in_the_batch_does_not_change_a_prediction(
    make_config: MakeConfig, task_name: str
) -> None:
    trained = train(make_config())
    checkpoint = str(trained.directory / "checkpoints" / "best_checkpoint.pt")
    batch_sizes = {"alone": (1, 256), "together": (64, 100_000)}
    found = {}
    for name, (examples, tokens) in batch_sizes.items():
        explicit = {"training.eval_batch_size": examples, "training.micro_batch_tokens": tokens}
        evaluation = EvaluateConfig(checkpoint=checkpoint, split="val")
        result = evaluate(evaluation, task_name=task_name, explicit=explicit)
        found[name] = _predictions(result)
    compared = 0
    for alone, together in zip(found["alone"], found["together"], strict=True):
        assert alone.keys() == together.keys()
        for number in ("probability", "null_score_diff"):
            assert alone.get(number) == pytest.approx(together.get(number), abs=1e-5)
        if _margin(alone) > 1e-4:
            compared += 1
            for decided in ("decision", "evidence"):
                assert _without_scores(alone.get(decided)) == _without_scores(together.get(decided))
    assert compared > 50


def _predictions(result: RunResult) -> list[dict[str, Any]]:
    lines = (result.directory / "predictions" / "val.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _margin(line: dict[str, Any]) -> float:
    """How far the nearest decision of a prediction is from its threshold."""
    margins = [abs(line["probability"] - line["threshold"])] if "probability" in line else []
    if "evidence" in line:
        scores = [-line["null_score_diff"], *(span["score"] for span in line["evidence"])]
        margins += [abs(score + line["null_score_diff_threshold"]) for score in scores]
    return min(margins)


def _without_scores(decided: Any) -> Any:
    if not isinstance(decided, list):
        return decided
    return [(span["start_char"], span["end_char"]) for span in decided]


@EVERY_TASK
def test_training_is_given_nothing_of_the_test_split(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[set[str]] = []
    original = TaskInputs.__init__

    def watched(self: TaskInputs, *parts: Any) -> None:
        original(self, *parts)
        given.append(set(self.examples))

    monkeypatch.setattr(TaskInputs, "__init__", watched)
    result = train(make_config())
    assert given == [{"train", "val"}]
    assert not [key for key in result.metrics if key.startswith("test/")]


@EVERY_TASK
@pytest.mark.faults(
    "NaN in the loss of an example",
    "stops before the update, names the example; weights stay finite",
)
def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_examples(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, task_name: str
) -> None:
    config = make_config("run_name=poisoned", "training.save_steps=1")
    original = TASKS[task_name].loss
    calls = []

    def poisoned(
        self: Task, model: torch.nn.Module, batch: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        loss = original(self, model, batch)
        calls.append(len(loss))
        if sum(calls) > 16:
            loss = loss.clone()
            loss[0] *= math.nan
        return loss

    monkeypatch.setattr(TASKS[task_name], "loss", poisoned)
    with pytest.raises(NonFiniteError, match=r"loss is NaN .* step 2.*\n  - p\d\d"):
        train(config)
    last = Path(config.output_dir) / task_name / "poisoned" / "checkpoints" / "last_checkpoint.pt"
    checkpoint = load_checkpoint(last, task=task_name)
    assert checkpoint.step == 2
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.weights.values())


def test_running_out_of_memory_halves_the_budget_and_repeats_the_step(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = CriteriaTask.loss

    def limited(
        self: CriteriaTask, model: CriteriaModel, batch: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        if batch["input_ids"].numel() > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, model, batch)

    small = train(make_config("run_name=small", "training.micro_batch_tokens=192", *COMPARABLE))
    monkeypatch.setattr(CriteriaTask, "loss", limited)
    big = train(make_config("run_name=big", "training.micro_batch_tokens=768", *COMPARABLE))
    assert "have at most 384 tokens" in caplog.text
    assert "have at most 192 tokens" in caplog.text
    assert _relative_difference(_last_weights(small), _last_weights(big)) < 1e-4


def test_memory_for_not_even_one_example_is_an_error_that_says_what_to_do(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CriteriaTask, "loss", never)
    with pytest.raises(ConfigError, match=r"model\.max_length"):
        train(make_config())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task_name", "architecture", "launcher"),
    [
        ("joint", "cross_encoder", "torchrun"),
        ("criteria", "cross_encoder", "accelerate"),
        ("criteria", "cross_encoder", "torchrun"),
        ("evidence", "cross_encoder", "torchrun"),
        ("evidence", "label_attention", "torchrun"),
        ("joint", "label_attention", "torchrun"),
    ],
)
def test_two_processes_make_the_update_of_one(
    make_config: MakeConfig, overrides: list[str], task_name: str, architecture: str, launcher: str
) -> None:
    # 10 examples a step: the last step of an epoch leaves one process with fewer micro-batches.
    settings = [*COMPARABLE, "training.train_batch_size=10", "training.micro_batch_size=2"]
    if architecture == "label_attention":
        # Of 14 texts one is in the last step, and val is one batch: a process is left without any.
        settings += ["training.train_batch_size=13", "training.micro_batch_tokens=100000"]
    one = train(make_config("run_name=one", *settings))
    modules = {
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
        "accelerate": [
            "accelerate.commands.launch",
            "--multi_gpu",  # also what starts several processes on a machine without GPUs
            "--num_processes=2",
            "--num_machines=1",
            "--main_process_port=0",
            "--mixed_precision=no",
            "--dynamo_backend=no",
        ],
    }
    script = str(Path(__file__).parents[3] / "scripts" / f"train_{task_name}.py")
    command = [
        sys.executable,
        "-m",
        *modules[launcher],
        script,
        *overrides,
        *settings,
        "run_name=two",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = one.directory.with_name("two")
    two = RunResult(folder, json.loads((folder / "metrics.json").read_text()), "")
    assert _relative_difference(_last_weights(one), _last_weights(two)) < 1e-4
    for own, theirs in zip(_predictions(one), _predictions(two), strict=True):
        assert own["example_id"] == theirs["example_id"]
        assert own.get("probability") == pytest.approx(theirs.get("probability"), abs=1e-3)
    assert {path.name for path in folder.parent.iterdir()} == {"one", "two"}
    assert done.stdout.count("run directory:") == 1
    assert done.stderr.count("2 processes train together") == 1


@pytest.mark.slow
def test_a_precision_in_the_launchers_configuration_is_not_ignored(
    overrides: list[str], tmp_path: Path
) -> None:
    asked = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "NO",
        "mixed_precision": "bf16",
        "num_machines": 1,
        "num_processes": 1,
        "use_cpu": True,
    }
    (tmp_path / "accelerate.yaml").write_text(json.dumps(asked))
    script = str(Path(__file__).parents[3] / "scripts" / "train_criteria.py")
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += [f"--config_file={tmp_path / 'accelerate.yaml'}", script, *overrides]
    done = subprocess.run(
        [*command, "training.amp=off"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode != 0
    assert "ConfigError: `accelerate launch` was asked for bf16" in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
@pytest.mark.faults("SIGTERM to the process group, with workers", "resumes to the same weights")
def test_a_signal_to_the_whole_process_group_saves_despite_worker_processes(
    make_config: MakeConfig, weights_of: Hashes
) -> None:
    settings = ("training.num_workers=2", "training.epochs=3")
    whole = train(make_config("run_name=whole", *settings))
    config = make_config("run_name=signalled", "resume=auto", *settings)
    child = multiprocessing.get_context("fork").Process(target=_signal_own_group, args=(config,))
    child.start()
    child.join(120)
    assert child.exitcode == 143
    assert weights_of(train(config)) == weights_of(whole)


def _signal_own_group(config: TrainConfig) -> None:
    os.setsid()
    original = trainer.Trainer._gradients

    def signalled(self: trainer.Trainer, step: trainer.Step) -> list[torch.Tensor]:
        if self._state.step == 6:
            os.killpg(0, signal.SIGTERM)
        return original(self, step)

    trainer.Trainer._gradients = signalled  # type: ignore[method-assign]
    try:
        train(config)
    except Interrupted as stop:
        os._exit(stop.exit_code)


@pytest.mark.faults(
    "the data changed since a run was stopped", "not resumed; what changed is named"
)
def test_a_run_does_not_go_on_with_other_data(
    make_config: MakeConfig, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(tiny_corpus, tmp_path / "corpus")
    config = make_config("run_name=moved", "resume=auto", f"data.dir={copy}")
    _stop_at(monkeypatch, [4])
    with pytest.raises(Interrupted):
        train(config)
    table = copy / "redsm5_annotations.csv"
    table.write_text(table.read_text().replace(",1,made up", ",0,made up", 1))
    with pytest.raises(CheckpointError, match="corpus changed"):
        train(config)


def test_posts_seen_in_training_are_refused_in_any_other_corpus(
    make_config: MakeConfig, tiny_corpus: Path, tmp_path: Path
) -> None:
    trained = train(make_config())
    copy = shutil.copytree(tiny_corpus, tmp_path / "corpus")
    table = copy / "redsm5_annotations.csv"
    table.write_text(table.read_text().replace(",1,made up", ",0,made up", 1))
    splits = json.loads((copy / "splits.json").read_text())
    swapped = {**splits, "train": splits["test"], "test": splits["train"]}
    (copy / "splits.json").write_text(json.dumps(swapped))
    evaluation = EvaluateConfig(
        checkpoint=str(trained.directory / "checkpoints" / "best_checkpoint.pt"), split="test"
    )
    with pytest.raises(CheckpointError, match="has seen 14 posts of test"):
        evaluate(evaluation, task_name="criteria", explicit={"data.dir": str(copy)})


def test_figures_of_other_weights_do_not_overwrite_the_runs_own(make_config: MakeConfig) -> None:
    trained = train(make_config("training.learning_rate=0.01", "training.eval_steps=1"))
    before = (trained.directory / "metrics.json").read_bytes()
    last = trained.directory / "checkpoints" / "last_checkpoint.pt"
    evaluation = EvaluateConfig(checkpoint=str(last), split="val")
    result = evaluate(evaluation, task_name="criteria", explicit={})
    assert result.directory.parent == trained.directory / "evaluations"
    assert (trained.directory / "metrics.json").read_bytes() == before
    assert not (trained.directory / "evaluations.jsonl").exists()
