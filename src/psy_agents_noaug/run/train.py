"""The story of a training, from a configuration to a report on val."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import CheckpointError, ConfigError
from psy_agents_noaug.run.checks import (
    check_kept_weights,
    check_monitor,
    check_resumed_data,
    check_resumed_processes,
    check_same_checkpoint,
    check_space,
    warn_of_another_precision,
    warn_of_other_conditions,
)
from psy_agents_noaug.run.context import RunContext
from psy_agents_noaug.run.data import PreparedData, prepare_data
from psy_agents_noaug.run.directory import RunDirectory, open_run_directory, point_to_latest
from psy_agents_noaug.run.evaluate import RunResult, report_split
from psy_agents_noaug.run.hardware import prepare_hardware
from psy_agents_noaug.run.records import (
    manifest_status,
    open_tracker,
    record_manifest,
    send_history,
    tracking_status,
    write_history,
    write_start_records,
)
from psy_agents_noaug.tasks.base import Encoders, Task, TaskInputs
from psy_agents_noaug.tasks.build import build_task, load_encoders, rebuild_encoders
from psy_agents_noaug.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    using,
    weights_sha256,
)
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.training.progress import ConsoleProgress
from psy_agents_noaug.training.trainer import Trainer, TrainingObserver, TrainingOutcome
from psy_agents_noaug.utils.out_of_memory import explained_memory_errors
from psy_agents_noaug.utils.private_errors import without_texts

logger = logging.getLogger(__name__)

History = list[dict[str, Any]]


@dataclass(frozen=True)
class RunPreview:
    """What a training is going to be about.

    Args:
        maximise: whether more of its monitor is better.
        fingerprints: of its data.
    """

    maximise: bool
    fingerprints: dict[str, str]


@without_texts()
@explained_memory_errors()
def train(
    config: TrainConfig,
    *,
    on_evaluation: Callable[[History], None] = lambda history: None,
    parent_run_id: str | None = None,
) -> RunResult:
    """Train, keep the best checkpoint by val, and report it on val. Test is not looked at.

    Args:
        config: of the run.
        on_evaluation: called in the main process with the rows of history.csv after each evaluation; may
            raise StoppedError.
        parent_run_id: the tracker's run to show this one under.

    Raises:
        ConfigError, DataError, CheckpointError: the user's to mend; nothing was trained.
        StorageError: there is no space, or the run's directory cannot be written; checkpoints are whole.
        Interrupted: stopped by a signal, state saved.
        NonFiniteError: a loss, a gradient, a score or a weight is NaN or infinite.
        LoaderError: a worker process that collates batches died or hung.
        OtherProcessError: another process of this training failed or was killed.
        StoppedError: `on_evaluation` ended the training.
    """
    hardware = prepare_hardware(config)
    distributed = hardware.distributed
    with _run_directory(config, hardware) as directory:
        with distributed.shared_errors():
            data = prepare_data(config)
            warn_of_other_conditions(config, data)
            checkpoint = _last_checkpoint(config, directory)
            if checkpoint is not None:
                with using(directory.last_checkpoint):
                    check_resumed_data(checkpoint, data, directory.path)
                check_resumed_processes(checkpoint, distributed.count, directory.path)
                if distributed.is_main:
                    check_kept_weights(checkpoint, config, directory)
                    warn_of_another_precision(directory, hardware.precision.mode)
        steps = distributed.gather(checkpoint.step if checkpoint else None)
        with distributed.shared_errors():
            check_same_checkpoint(steps, directory.last_checkpoint)
            task = _build(config, hardware, data, _encoders(config, checkpoint, directory))
            maximise = check_monitor(config.training.monitor, task) == "max"
            for split in ("train", "val"):
                for note in task.input_summary(split):
                    logger.info(note)
        trainer = Trainer(
            task,
            config,
            hardware,
            maximise=maximise,
            checkpoint_dir=directory.checkpoints,
            metadata={
                **task.metadata(),
                "fingerprints": data.fingerprints(),
                "seen_texts": sorted(data.text_hashes("train", "val").values()),
                "seen_posts": data.seen_posts().to_metadata(),
            },
        )
        with distributed.shared_errors():
            if checkpoint is not None:
                with using(directory.last_checkpoint):
                    trainer.restore(checkpoint)
            if distributed.is_main:
                check_space(directory, task)
        # Nothing of another process can fail here, which would leave the tracker open.
        with distributed.shared_errors():
            tracker = open_tracker(
                config,
                hardware,
                directory,
                parent_run_id=parent_run_id,
                is_required=parent_run_id is None,
            )
        context = RunContext(config, hardware, directory, data, tracker)
        with tracking_status(tracker), _manifest_status(context):
            with distributed.shared_errors():
                if context.is_main:
                    write_start_records(context)
                    # What the tracker may have missed before the run was stopped.
                    send_history(tracker, trainer.history)
                    if trainer.history:
                        write_history(directory.history, trainer.history)
            outcome = trainer.fit(_observer(context, trainer, on_evaluation))
            return _finish(context, task, outcome)


@without_texts()
def preview(config: TrainConfig) -> RunPreview:
    """Prepare what `train` would train on, without training.

    The corpus is read and tokenised, the monitor looked up: faults of either show here, and the tokens
    are in the cache for every training that follows.

    Raises:
        ConfigError, DataError: the user's to mend.
    """
    hardware = prepare_hardware(config)
    data = prepare_data(config)
    task = _build(config, hardware, data, load_encoders(config))
    maximise = check_monitor(config.training.monitor, task) == "max"
    for split in ("train", "val"):
        task.source(split)
    return RunPreview(maximise, data.fingerprints())


@contextmanager
def _run_directory(config: TrainConfig, hardware: Hardware) -> Iterator[RunDirectory]:
    """Let the main process open the directory, and the others know which."""
    distributed = hardware.distributed
    with ExitStack() as stack:
        with distributed.shared_errors():
            opened = (
                stack.enter_context(open_run_directory(config)) if distributed.is_main else None
            )
        path = distributed.from_main(opened.path if opened else None)
        assert path is not None
        with distributed.shared_errors():
            if not path.is_dir():
                raise ConfigError(
                    f"Process {distributed.rank} of this training does not see {path}, where the "
                    "results go: `output_dir` must be on a disk that the machines of all processes "
                    "share, by the same path on each."
                )
        yield opened or RunDirectory(path)


def _manifest_status(context: RunContext) -> AbstractContextManager[None]:
    return manifest_status(context.directory) if context.is_main else nullcontext()


def _last_checkpoint(config: TrainConfig, directory: RunDirectory) -> Checkpoint | None:
    if config.resume is None or not directory.last_checkpoint.is_file():
        return None
    checkpoint = load_checkpoint(directory.last_checkpoint, task=config.task.name)
    if checkpoint.resume is None:
        raise CheckpointError(
            f"{directory.last_checkpoint} lacks the optimizer's state, without which a run cannot go on."
        )
    logger.info("Going on with %s from step %d.", directory.path, checkpoint.step)
    return checkpoint


def _encoders(
    config: TrainConfig, checkpoint: Checkpoint | None, directory: RunDirectory
) -> Encoders:
    """Load the pretrained encoders, or build those of the last checkpoint."""
    if checkpoint is None:
        return load_encoders(config)
    with using(directory.last_checkpoint):
        return rebuild_encoders(config, checkpoint.metadata)


def _build(config: TrainConfig, hardware: Hardware, data: PreparedData, encoders: Encoders) -> Task:
    """Build the task on train and val."""
    examples = {name: data.examples[name] for name in ("train", "val")}
    inputs = TaskInputs(encoders, data.criteria, examples, hardware.max_tokens_held)
    task = build_task(config, inputs)
    task.check_training_examples()
    return task


def _observer(
    context: RunContext, trainer: Trainer, on_evaluation: Callable[[History], None]
) -> TrainingObserver:
    if not context.is_main:
        return TrainingObserver()

    def record(history: History) -> None:
        write_history(context.directory.history, history)
        on_evaluation(history)

    progress = ConsoleProgress(total_steps=trainer.total_steps, first_step=trainer.step)
    return TrainingObserver(context.tracker, progress, record)


def _finish(context: RunContext, task: Task, outcome: TrainingOutcome) -> RunResult:
    """Report the best checkpoint on val and complete the records."""
    directory, precision = context.directory, context.hardware.precision
    context.hardware.distributed.wait()
    if precision.skipped_updates:
        logger.warning(
            "%d of %d updates were skipped, because fp16 gradients overflowed. A few are usual, as the "
            "loss scale is found in this way; if they are many, use training.amp=bf16 or off.",
            precision.skipped_updates,
            outcome.step,
        )
    with context.hardware.distributed.shared_errors():
        checkpoint = load_checkpoint(directory.best_checkpoint, task=task.name)
    task.model.load_state_dict(checkpoint.weights)
    # Of a metric MLflow shows the value with the latest step, which must be the kept model's.
    result = report_split(
        context,
        task,
        "val",
        rule=checkpoint.decision_rule,
        step=outcome.step,
        rule_is_fitted_here=True,
    )
    with context.hardware.distributed.shared_errors():
        if context.is_main:
            record_manifest(
                context,
                status="finished",
                weights=weights_sha256(checkpoint.weights),
                extra={
                    "steps": outcome.step,
                    "best_step": outcome.best_step,
                    "stopped_early": outcome.stopped_early,
                    "skipped_updates": precision.skipped_updates,
                },
            )
            for path in (directory.manifest, directory.history):
                context.tracker.log_artifact(path)
            point_to_latest(Path(context.config.output_dir), directory)
    return result
