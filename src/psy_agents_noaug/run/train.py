"""The story of a training, from a configuration to a report on val."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.data.splits import OUT_OF_FOLD
from psy_agents_noaug.errors import CheckpointError, ConfigError
from psy_agents_noaug.run.checks import (
    check_kept_weights,
    check_monitor,
    check_resumed_data,
    check_resumed_processes,
    check_resumed_refit,
    check_same_checkpoint,
    check_space,
    training_warnings,
    warn_of_another_precision,
)
from psy_agents_noaug.run.context import RunContext
from psy_agents_noaug.run.data import PreparedData, prepare_data
from psy_agents_noaug.run.directory import RunDirectory, open_run_directory, point_to_latest
from psy_agents_noaug.run.evaluate import RunResult, report_split
from psy_agents_noaug.run.hardware import prepare_hardware
from psy_agents_noaug.run.records import (
    ReportWriter,
    make_report,
    manifest_status,
    no_report,
    open_tracker,
    record_manifest,
    send_history,
    tracking_status,
    write_history,
    write_start_records,
)
from psy_agents_noaug.run.refits import REFIT, describe
from psy_agents_noaug.run.seen import own_secret
from psy_agents_noaug.tasks.base import Encoders, Task, TaskInputs
from psy_agents_noaug.tasks.build import build_task, load_encoders, rebuild_encoders
from psy_agents_noaug.tracking.base import Tracker
from psy_agents_noaug.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    using,
    weights_sha256,
)
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.training.progress import ConsoleProgress
from psy_agents_noaug.training.refit import RefitDecisions
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
    write_report: ReportWriter = no_report,
    refit: RefitDecisions | None = None,
) -> RunResult:
    """Train, keep the best checkpoint by val, and report it on val. Test is not looked at.

    Args:
        config: of the run.
        on_evaluation: called in the main process with the rows of history.csv after each evaluation; may
            raise StoppedError.
        parent_run_id: the tracker's run to show this one under.
        write_report: writes the report when the training has finished.
        refit: with `refit=train+val`, what was decided without val: the last weights are kept then, and
            there are no figures.

    Raises:
        ConfigError, DataError, CheckpointError: the user's to mend; nothing was trained.
        StorageError: there is no space, or the run's directory cannot be written; checkpoints are whole.
        Interrupted: stopped by a signal, state saved.
        NonFiniteError: a loss, a gradient, a score or a weight is NaN or infinite.
        LoaderError: a worker process that collates batches died or hung.
        OtherProcessError: another process of this training failed or was killed.
        StoppedError: `on_evaluation` ended the training.
    """
    assert (refit is None) == (config.refit is None), "`run.series.refit` decides"
    origin = dict(refit.origin) if refit else None
    hardware = prepare_hardware(config)
    distributed = hardware.distributed
    with shared_directory(config, hardware) as directory:
        with distributed.shared_errors():
            data = prepare_data(config)
            for warning in training_warnings(config, data):
                logger.warning(warning)
            checkpoint = continued_checkpoint(config, directory)
            if checkpoint is not None:
                with using(directory.last_checkpoint):
                    check_resumed_refit(checkpoint, origin, directory.path)
                check_resumption(checkpoint, data.fingerprints(), config, hardware, directory)
        steps = distributed.gather(checkpoint.step if checkpoint else None)
        with distributed.shared_errors():
            check_same_checkpoint(steps, directory.last_checkpoint)
            task = _build(config, hardware, data, _encoders(config, checkpoint, directory))
            # Without val nothing is monitored.
            monitor, evaluation = config.training.monitor, task.evaluation
            monitor_mode = check_monitor(monitor, evaluation) if refit is None else None
            for split in task.examples:
                for note in task.input_summary(split):
                    logger.info(note)
            # Of the process that writes the checkpoints.
            seen = data.seen_posts(own_secret(directory)) if distributed.is_main else {}
        trainer = Trainer(
            task,
            config,
            hardware,
            maximise=monitor_mode == "max",
            checkpoint_dir=directory.checkpoints,
            metadata={
                **task.metadata(),
                "fingerprints": data.fingerprints(),
                "seen_posts": seen,
                **({REFIT: origin} if origin else {}),
            },
            refit=refit,
        )
        if origin:
            logger.info("%s It is trained for %d updates.", describe(origin), trainer.total_steps)
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
        with tracking_status(tracker):
            with _manifest_status(context):
                with distributed.shared_errors():
                    if context.is_main:
                        about = {REFIT: origin} if origin else {"monitor_mode": monitor_mode}
                        write_start_records(context, about)
                        # What the tracker may have missed before the run was stopped.
                        send_history(tracker, trainer.history)
                        if trainer.history:
                            write_history(directory.history, trainer.history)
                observer = TrainingObserver()
                if context.is_main:
                    observer = observer_of(trainer, directory, tracker, on_evaluation)
                outcome = trainer.fit(observer)
                if refit is None:
                    result = _finish(context, task, outcome)
                else:
                    result = _finish_refit(context, outcome, refit)
            # Whatever happens now, the training is finished.
            if refit is None:
                make_report(context, write_report)
            return result


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
    maximise = check_monitor(config.training.monitor, task.evaluation) == "max"
    for split in ("train", "val"):
        task.source(split)
    return RunPreview(maximise, data.fingerprints())


@contextmanager
def shared_directory(config: TrainConfig, hardware: Hardware) -> Iterator[RunDirectory]:
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


def continued_checkpoint(config: TrainConfig, directory: RunDirectory) -> Checkpoint | None:
    """Return the last checkpoint of a run that goes on; None of one that begins.

    Raises:
        CheckpointError: it cannot be gone on with.
    """
    if config.resume is None or not directory.last_checkpoint.is_file():
        return None
    checkpoint = load_checkpoint(directory.last_checkpoint, task=config.task.name)
    if checkpoint.resume is None:
        raise CheckpointError(
            f"{directory.last_checkpoint} lacks the optimizer's state, without which a run cannot go on."
        )
    logger.info("Going on with %s from step %d.", directory.path, checkpoint.step)
    return checkpoint


def check_resumption(
    checkpoint: Checkpoint,
    fingerprints: Mapping[str, str],
    config: TrainConfig,
    hardware: Hardware,
    directory: RunDirectory,
) -> None:
    """Refuse to go on from a checkpoint with what would give other weights than an uninterrupted run.

    Args:
        checkpoint: of `continued_checkpoint`.
        fingerprints: of the data as they are now.
        config: of the run.
        hardware: that it goes on with.
        directory: of the run.

    Raises:
        CheckpointError: saying what has changed.
    """
    with using(directory.last_checkpoint):
        check_resumed_data(checkpoint, fingerprints, directory.path)
    check_resumed_processes(checkpoint, hardware.distributed.count, directory.path)
    if hardware.distributed.is_main:
        check_kept_weights(checkpoint, config, directory)
        warn_of_another_precision(directory, hardware.precision.mode)


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
    learned = ("train", "val") if "val" in data.examples else ("train",)
    examples = {str(name): data.examples[name] for name in learned}
    inputs = TaskInputs(encoders, data.criteria, examples, hardware.max_tokens_held)
    task = build_task(config, inputs)
    task.check_training_examples()
    return task


def observer_of(
    trainer: Trainer,
    directory: RunDirectory,
    tracker: Tracker,
    on_evaluation: Callable[[History], None] = lambda history: None,
) -> TrainingObserver:
    """Return what the main process shows and records of a training."""

    def record(history: History) -> None:
        write_history(directory.history, history)
        on_evaluation(history)

    progress = ConsoleProgress(
        total_steps=trainer.total_steps,
        first_step=trainer.step,
        eval_steps=trainer.eval_steps,
        evaluated_step=trainer.evaluated_step,
        best=trainer.best,
    )
    return TrainingObserver(tracker, progress, record)


def _finish(context: RunContext, task: Task, outcome: TrainingOutcome) -> RunResult:
    """Report the best checkpoint on val and complete the records."""
    directory = context.directory
    _warn_of_skipped_updates(context, outcome)
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
    # A run in a folder of several is none that the next command is about.
    is_latest = "/" not in (context.config.run_name or "")
    _record_end(context, outcome, checkpoint, is_latest=is_latest)
    return result


def _finish_refit(
    context: RunContext, outcome: TrainingOutcome, refit: RefitDecisions
) -> RunResult:
    """Keep what the decision rule was fitted on, and complete the records. There are no figures."""
    _warn_of_skipped_updates(context, outcome)
    with context.hardware.distributed.shared_errors():
        checkpoint = load_checkpoint(context.directory.best_checkpoint)
        if context.is_main:
            context.directory.write_predictions(OUT_OF_FOLD, refit.lines)
    _record_end(context, outcome, checkpoint, is_latest=True, about={REFIT: dict(refit.origin)})
    return RunResult(context.directory.path, {}, describe(refit.origin))


def _warn_of_skipped_updates(context: RunContext, outcome: TrainingOutcome) -> None:
    context.hardware.distributed.wait()
    if skipped := context.hardware.precision.skipped_updates:
        logger.warning(
            "%d of %d updates were skipped, because fp16 gradients overflowed. A few are usual, as the "
            "loss scale is found in this way; if they are many, use training.amp=bf16 or off.",
            skipped,
            outcome.step,
        )


def _record_end(
    context: RunContext,
    outcome: TrainingOutcome,
    checkpoint: Checkpoint,
    *,
    is_latest: bool,
    about: Mapping[str, object] | None = None,
) -> None:
    """Write the manifest of a finished training.

    Args:
        context: the run.
        outcome: of the training.
        checkpoint: the best.
        is_latest: whether `<output_dir>/checkpoints` leads to it.
        about: further entries.
    """
    directory = context.directory
    with context.hardware.distributed.shared_errors():
        if not context.is_main:
            return
        record_manifest(
            context,
            status="finished",
            weights=weights_sha256(checkpoint.weights),
            extra={
                "steps": outcome.step,
                "best_step": outcome.best_step,
                "best_value": outcome.best_value,
                "stopped_early": outcome.stopped_early,
                "skipped_updates": context.hardware.precision.skipped_updates,
                **(about or {}),
            },
        )
        for path in (directory.manifest, directory.history):
            context.tracker.log_artifact(path)
        if is_latest:
            point_to_latest(Path(context.config.output_dir), directory)
