"""What must hold before a run's figures are computed; each check refuses with what to do."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from psy_agents_noaug.config.loading import PROTOCOL, RECIPE, read_overrides_file
from psy_agents_noaug.config.schema import ProtocolConfig, TrainConfig
from psy_agents_noaug.data.splits import WHOLE
from psy_agents_noaug.errors import CheckpointError, ConfigError, StorageError, faults_message
from psy_agents_noaug.run.adapted import adaptation_warnings
from psy_agents_noaug.run.data import PreparedData
from psy_agents_noaug.run.directory import RunDirectory, differences, directory_of
from psy_agents_noaug.run.refits import LEARNED_VAL, REFIT
from psy_agents_noaug.run.seen import is_shared, on_training_data
from psy_agents_noaug.tasks.base import Task, TaskEvaluation
from psy_agents_noaug.tracking.manifest import package_versions
from psy_agents_noaug.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    tensor_bytes,
    using,
)
from psy_agents_noaug.training.optim import trainable
from psy_agents_noaug.utils.files import free_bytes, megabytes, sha256_of_json

logger = logging.getLogger(__name__)

# Settings that an evaluation may replace, although they are of the model or its decisions.
OF_THE_MODEL = ("model.max_length", "task.decoding")


def check_monitor(monitor: str, evaluation: TaskEvaluation) -> Literal["max", "min"]:
    """Return which way the monitor gets better.

    Args:
        monitor: `training.monitor`.
        evaluation: of the task.

    Raises:
        ConfigError: the monitor is not a metric on val that training may steer by.
    """
    known = {f"val/{name}": direction for name, direction in evaluation.monitors().items()}
    if monitor not in known:
        per_criterion = sorted(name for name in known if "/per_criterion/" in name)
        names = ", ".join(sorted(known.keys() - set(per_criterion)))
        more = f"; and the same per criterion, e.g. {per_criterion[0]}" if per_criterion else ""
        raise ConfigError(
            f"`training.monitor` must be a figure on val, but is {monitor!r} instead. There are: "
            f"{names}{more}."
        )
    return known[monitor]


def check_resumed_data(checkpoint: Checkpoint, fingerprints: Mapping[str, str], path: Path) -> None:
    """Refuse to go on with other data than a run began with.

    Raises:
        CheckpointError: the corpus or its division has changed.
    """
    began_with = checkpoint.metadata["fingerprints"]
    changed = [name for name, now in fingerprints.items() if now != began_with[name]]
    if changed:
        raise CheckpointError(
            f"The run in {path} began with other data ({' and '.join(changed)} changed since): going on "
            "would mix them. Start a new run, or bring the data back."
        )


def check_resumed_refit(
    checkpoint: Checkpoint, origin: Mapping[str, Any] | None, path: Path
) -> None:
    """Refuse to go on with a refit by another cross-validation than it began with.

    Args:
        checkpoint: the last one.
        origin: of the refit now; None: there is none.
        path: of the run.

    Raises:
        CheckpointError: what was decided has changed.
    """
    if checkpoint.metadata.get(REFIT) != origin:
        raise CheckpointError(
            f"The run in {path} began with other decisions than those of the cross-validation beside "
            "it. Choose another `run_name`, or remove this run."
        )


def check_val_is_unlearned(
    checkpoint: Checkpoint, data: PreparedData, split: str, path: Path
) -> None:
    """Refuse val of the training's corpus where training has learned it.

    Raises:
        CheckpointError: with what can be evaluated.
    """
    is_refit = checkpoint.metadata.get(REFIT) is not None
    if is_refit and split == "val" and on_training_data(checkpoint, data) is not False:
        raise CheckpointError(
            f"{path} cannot be evaluated on val: {LEARNED_VAL}. Evaluate it on test; what its "
            "configuration is worth on train and val is in the metrics.json of its cross-validation."
        )


def check_kept_weights(
    checkpoint: Checkpoint, config: TrainConfig, directory: RunDirectory
) -> None:
    """Refuse to go on where the best weights so far are lost: the run could not report them at its end.

    Args:
        checkpoint: the last one.
        config: of the run.
        directory: of the run.

    Raises:
        CheckpointError: the best checkpoint is absent, damaged, or another run's.
    """
    with using(directory.last_checkpoint):
        step = checkpoint.resume["early_stopping"]["best_step"] if checkpoint.resume else None
    if step is None:
        return
    path = directory.best_checkpoint
    remedy = (
        "Put a copy of it in its place. Without one, remove "
        f"{directory.last_checkpoint}, and the same command starts the run from its beginning."
    )
    try:
        best = load_checkpoint(path, task=config.task.name)
    except CheckpointError as error:
        raise CheckpointError(f"The best weights of this run are lost: {error} {remedy}") from error
    # One that was written after the last checkpoint is written again.
    is_of_this_state = best.step == step or best.step >= checkpoint.step
    if not is_of_this_state or differences(best.config, config):
        raise CheckpointError(
            f"{path} must hold the weights of step {step} of this run, but holds others. {remedy}"
        )


def check_resumed_processes(checkpoint: Checkpoint, n_processes: int, path: Path) -> None:
    """Refuse to go on with another number of processes, whose draws of dropout are others.

    Checkpoints of 0.2.0 and earlier do not say how many there were.

    Raises:
        CheckpointError: the number has changed.
    """
    before = (checkpoint.resume or {}).get("n_processes", n_processes)
    if before != n_processes:
        raise CheckpointError(
            f"The run in {path} began with {_processes(before)}, but {_processes(n_processes)} would go "
            "on with it: the weights would be others than those of a run that was not stopped. Start "
            f"{_processes(before)} (`torchrun --nproc-per-node={before}`, or none for one), or choose "
            "another `run_name`."
        )


def warn_of_another_precision(directory: RunDirectory, mixed_precision: str) -> None:
    """Warn if `training.amp=auto` chose otherwise where the run began, on other hardware.

    Manifests of 0.2.0 and earlier do not say what it chose.

    Args:
        directory: of the run that goes on.
        mixed_precision: `off`, `bf16` or `fp16`.
    """
    before = directory.read_manifest().get("mixed_precision", mixed_precision)
    if before != mixed_precision:
        logger.warning(
            "The run in %s began with mixed precision %s on other hardware, and goes on with %s here: "
            "the weights will not be those of a run that was not stopped.",
            directory.path,
            before,
            mixed_precision,
        )


def check_same_checkpoint(steps: Sequence[int | None], path: Path) -> None:
    """Refuse to go on where the processes see different checkpoints.

    Args:
        steps: of the checkpoint that each process sees; None: it sees none.
        path: of the checkpoint.

    Raises:
        CheckpointError: they differ.
    """
    if len(set(steps)) > 1:
        seen = [
            f"process {rank}: " + ("none" if step is None else f"of step {step}")
            for rank, step in enumerate(steps)
        ]
        raise CheckpointError(
            faults_message(
                f"The processes of this training see different checkpoints at {path}. `output_dir` must "
                "be on a disk that their machines share; they see:",
                seen,
            )
        )


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def check_space(directory: RunDirectory, task: Task) -> None:
    """Refuse to train where the checkpoints cannot fit.

    The best weights, the last ones with two moments per trained weight (AdamW), and the next last
    checkpoint, which is written before it replaces the last one.

    Raises:
        StorageError: with the bytes that are needed and free.
    """
    weights = tensor_bytes(task.model.state_dict())
    last = weights + 2 * sum(weight.nbytes for weight in trainable(task.model))
    files = (directory.best_checkpoint, directory.last_checkpoint)
    present = sum(path.stat().st_size for path in files if path.is_file())
    needed = weights + 2 * last - present
    free = free_bytes(directory.checkpoints)
    if free is not None and free < needed:
        raise StorageError(
            f"{directory.checkpoints} lacks space: the checkpoints of this run need "
            f"{megabytes(needed)} more, but {megabytes(free)} are free. Make space there, or write "
            "elsewhere (`output_dir`)."
        )


def training_warnings(config: TrainConfig, data: PreparedData) -> list[str]:
    """Return what a user should know before a training, besides the warnings of the data alone."""
    adapted = adaptation_warnings(config.model, data.fingerprints(corrected=False))
    return [*_other_conditions(config, data), *adapted]


def _other_conditions(config: TrainConfig, data: PreparedData) -> Iterator[str]:
    """Yield how a best configuration was found on other data, or with other versions, than these."""
    if config.best_config is None:
        return
    path = Path(config.best_config)
    _, found_by = read_overrides_file(path, task=config.task.name)
    threads = torch.get_num_threads()
    conditions: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("data", "on other data", data.fingerprints()),
        ("packages", "with other versions", package_versions()),
        ("torch_threads", "with another number of CPU threads", {"CPU threads": threads}),
    )
    if found_by.get("torch_threads"):
        found_by["torch_threads"] = {"CPU threads": found_by["torch_threads"]}
    for kind, headline, now in conditions:
        before = found_by.get(kind) or now
        changes = [
            f"{name} {before.get(name)} (now {value})"
            for name, value in now.items()
            if before.get(name) != value
        ]
        if changes:
            yield f"{path} was found {headline}: {', '.join(changes)}."


def check_evaluation_settings(explicit: Mapping[str, Any], *, split: str = "test") -> None:
    """Refuse settings that would make another model of the checkpoint's weights, or have no effect.

    Args:
        explicit: the settings that are given, by dotted keys.
        split: to be evaluated.

    Raises:
        ConfigError: naming them all.
    """
    fixed = [
        key
        for key in explicit
        if key.split(".")[0] in ("model", "task", RECIPE, REFIT) and key not in OF_THE_MODEL
    ]
    if fixed:
        raise ConfigError(
            faults_message(
                "A checkpoint is evaluated with the model and the task it was trained with; leave out:",
                [f"`{key}`" for key in fixed],
            )
        )
    names = ("splits", "division", "split_fractions", "split_seed", "duplicates")
    unused = [f"data.{key}" for key in names if explicit.get(f"data.{key}") is not None]
    if split == WHOLE and unused and PROTOCOL not in explicit:
        raise ConfigError(
            faults_message(
                f"`split={WHOLE}` evaluates all posts of a corpus, which is not divided; leave out:",
                [f"`{key}`" for key in unused],
            )
        )


def check_protocol_split(protocol: ProtocolConfig, split: str) -> None:
    """Refuse to report a protocol that divides the corpus on all of it.

    Raises:
        ConfigError: what to do instead.
    """
    if split == WHOLE and protocol.divides:
        raise ConfigError(
            f"`split={WHOLE}` evaluates all posts, but protocol={protocol.name} is about a part of "
            "them; use split=test, or add protocol=none."
        )


def check_needs_no_training_pairs(task: Task) -> None:
    """Refuse a corpus that is not divided where the task's report needs pairs to train baselines on.

    Raises:
        ConfigError: what to do instead.
    """
    if task.evaluation.needs_training_pairs:
        raise ConfigError(
            f"`split={WHOLE}` is not possible with the task {task.name}, whose report needs training "
            "pairs of the same corpus. Use split=test."
        )


def evaluation_directory(
    path: Path,
    checkpoint: Checkpoint,
    data: PreparedData,
    config: TrainConfig,
    *,
    weights: str,
    is_ensemble: bool = False,
) -> RunDirectory:
    """Where an evaluation is written; the folder may not be there yet.

    The run's own directory, if these are the weights, the data and the settings that it reports; else a
    folder of their own in `evaluations/`, so that no file mixes figures of different things. An ensemble
    has a folder of its own. Nothing is written beside a checkpoint that was made to be shared:
    predictions have the ids of posts.
    """
    run = directory_of(path)
    if is_ensemble or is_shared(checkpoint):
        kind = "ensemble" if is_ensemble else "shared"
        run = RunDirectory(Path(config.output_dir) / config.task.name / f"{kind}-{weights[:8]}")
    changes = differences(checkpoint.config, config)
    same_data = on_training_data(checkpoint, data)
    if same_data and not changes and run.read_manifest().get("weights_sha256") == weights:
        return run
    key = sha256_of_json({"weights": weights, "data": data.fingerprints(), "changes": changes})
    other = run.other_evaluations / f"{config.data.name}-{path.stem}-{key[:8]}"
    logger.info("Not the run's own weights, data and settings: results go to %s.", other)
    return RunDirectory(other)
