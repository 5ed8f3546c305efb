"""The story of a run: `train` and `evaluate`. Every entry point comes here."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psy_agents_noaug.config.loading import lay_over
from psy_agents_noaug.config.schema import EvaluateConfig, TrainConfig
from psy_agents_noaug.errors import CheckpointError
from psy_agents_noaug.run.checks import (
    better_direction,
    check_evaluation_settings,
    check_resumed_data,
    check_unseen,
    evaluation_directory,
    warn_of_other_conditions,
)
from psy_agents_noaug.run.data import PreparedData, prepare_data
from psy_agents_noaug.run.directory import RunDirectory, open_run_directory, point_to_latest
from psy_agents_noaug.run.hardware import Hardware, prepare_hardware
from psy_agents_noaug.run.records import (
    open_tracker,
    record_manifest,
    tracking_status,
    write_history,
    write_start_records,
)
from psy_agents_noaug.tasks.base import ReportingTask
from psy_agents_noaug.tasks.build import build_task
from psy_agents_noaug.tasks.encoders import load_encoders, rebuild_encoders
from psy_agents_noaug.tracking.base import Tracker
from psy_agents_noaug.training.batching import TrainingSteps
from psy_agents_noaug.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    weights_sha256,
)
from psy_agents_noaug.training.distributed import DistributedContext
from psy_agents_noaug.training.early_stopping import EarlyStopping
from psy_agents_noaug.training.evaluator import Evaluator
from psy_agents_noaug.training.optim import build_optimizer, build_scheduler
from psy_agents_noaug.training.progress import ConsoleProgress, NullProgress
from psy_agents_noaug.training.protocols import MetricValues
from psy_agents_noaug.training.trainer import Trainer, TrainingOutcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run ended with: its directory, the figures (keys with their split), a table of them."""

    directory: Path
    metrics: dict[str, Any]
    summary: str


@dataclass(frozen=True)
class RunPreview:
    """What a training is going to be about: whether its monitor is to rise, its data's fingerprints."""

    maximise: bool
    fingerprints: dict[str, str]


def train(
    config: TrainConfig,
    *,
    on_evaluation: Callable[[list[dict[str, Any]]], None] = lambda history: None,
    parent_run_id: str | None = None,
) -> RunResult:
    """Train, keep the best checkpoint by val, and judge it on val. Test is not looked at.

    `on_evaluation` is called, in the main process, with the rows of history.csv after each evaluation;
    it may raise StoppedError. `parent_run_id` is the tracker's run to show this one under.

    Raises:
        ConfigError, DataError, CheckpointError: the user's to mend; nothing was trained.
        Interrupted: stopped by a signal, state saved.
        NonFiniteError: the loss or a gradient is NaN or infinite.
        StoppedError: `on_evaluation` has had enough.
    """
    machine = prepare_hardware(config)
    processes = machine.processes
    with _run_directory(config, processes) as directory:
        data = prepare_data(config.data)
        warn_of_other_conditions(config, data)
        checkpoint = _last_checkpoint(config, directory)
        if checkpoint is not None:
            check_resumed_data(checkpoint, data, directory.path)
        encoders = (
            load_encoders(config) if checkpoint is None else rebuild_encoders(checkpoint.metadata)
        )
        task = build_task(
            config,
            encoders=encoders,
            criteria=data.corpus.criteria,
            examples={name: data.examples[name] for name in ("train", "val")},
            max_tokens=machine.max_tokens,
        )
        direction = better_direction(config.training.monitor, task)
        tracker = open_tracker(config, directory, processes, parent_run_id=parent_run_id)

        def tell(history: list[dict[str, Any]]) -> None:
            write_history(directory.history, history)
            on_evaluation(history)

        with tracking_status(tracker):
            if processes.is_main:
                write_start_records(config, directory, data, tracker)
            outcome = _fit(
                config,
                machine,
                task,
                directory,
                data,
                tracker,
                checkpoint,
                direction=direction,
                on_evaluation=tell,
            )
            return _finish(config, machine, task, directory, data, tracker, outcome)


def survey(config: TrainConfig) -> RunPreview:
    """Prepare what `train` would train on, without training.

    The corpus is read and tokenised, the monitor looked up: what is wrong with either shows here, and
    the tokens are there for every training that follows.

    Raises:
        ConfigError, DataError: the user's to mend.
    """
    machine = prepare_hardware(config)
    data = prepare_data(config.data)
    task = build_task(
        config,
        encoders=load_encoders(config),
        criteria=data.corpus.criteria,
        examples={name: data.examples[name] for name in ("train", "val")},
        max_tokens=machine.max_tokens,
    )
    direction = better_direction(config.training.monitor, task)
    for split in ("train", "val"):
        task.source(split)
    return RunPreview(maximise=direction == "max", fingerprints=data.fingerprints())


def evaluate(
    evaluation: EvaluateConfig, *, task_name: str, explicit: Mapping[str, Any]
) -> RunResult:
    """Judge a checkpoint of `task_name` on a split, as it was trained but for `explicit` settings.

    Results go to the run's own directory, or, where weights, data or settings are not those that it
    reports, to a folder in its `evaluations/`.

    Raises:
        CheckpointError: the file is damaged, of another task or other criteria, or training has seen
            posts of the split.
        ConfigError: `explicit` would make another model of the weights.
    """
    check_evaluation_settings(explicit)
    path, split = Path(evaluation.checkpoint), evaluation.split
    checkpoint = load_checkpoint(path, task=task_name)
    config = lay_over(checkpoint.config, explicit)
    machine = prepare_hardware(config)
    processes = machine.processes
    data = prepare_data(config.data)
    check_unseen(checkpoint, data, split, path)
    weights = weights_sha256(checkpoint.weights)
    directory = evaluation_directory(path, checkpoint, data, config, weights=weights)
    task = build_task(
        config,
        encoders=rebuild_encoders(checkpoint.metadata),
        criteria=data.corpus.criteria,
        examples=data.examples,
        max_tokens=machine.max_tokens,
    )
    if task.metadata()["criteria"] != checkpoint.metadata["criteria"]:
        raise CheckpointError(f"{path} was trained on other criteria than `data` has.")
    task.model.load_state_dict(checkpoint.weights)
    task.model.to(processes.device)
    if processes.is_main:
        look = directory.record_look(split, weights_sha256=weights)
        logger.info("This is look %d at %s in %s.", look, split, directory.path)
    parent = RunDirectory(path.resolve().parent.parent).read_manifest().get("mlflow_run_id")
    tracker = open_tracker(
        config,
        directory,
        processes,
        run_name=f"{directory.path.name}-{split}",
        parent_run_id=parent,
    )
    with tracking_status(tracker):
        tracker.set_tags({"checkpoint_weights_sha256": weights, **data.fingerprints()})
        return _judge(
            _evaluator(config, machine, task),
            task,
            directory,
            tracker,
            split=split,
            checkpoint=checkpoint,
            step=checkpoint.step,
        )


@contextmanager
def _run_directory(config: TrainConfig, processes: DistributedContext) -> Iterator[RunDirectory]:
    """Let the main process open the directory, and the others know which."""
    with open_run_directory(config) if processes.is_main else nullcontext() as opened:
        path = processes.from_main(opened.path if opened else None)
        assert path is not None
        yield opened or RunDirectory(path)


def _last_checkpoint(config: TrainConfig, directory: RunDirectory) -> Checkpoint | None:
    if config.resume is None or not directory.last_checkpoint.is_file():
        return None
    checkpoint = load_checkpoint(directory.last_checkpoint, task=config.task.name)
    logger.info("Going on with %s from step %d.", directory.path, checkpoint.step)
    return checkpoint


def _fit(
    config: TrainConfig,
    machine: Hardware,
    task: ReportingTask,
    directory: RunDirectory,
    data: PreparedData,
    tracker: Tracker,
    checkpoint: Checkpoint | None,
    *,
    direction: str,
    on_evaluation: Callable[[list[dict[str, Any]]], None],
) -> TrainingOutcome:
    training, processes = config.training, machine.processes
    for split in ("train", "val"):
        for note in task.notes(split):
            logger.info(note)
    model = processes.wrap(task.model)
    optimizer = build_optimizer(
        task.model,
        learning_rate=training.learning_rate,
        head_learning_rate=training.head_learning_rate,
        weight_decay=training.weight_decay,
        betas=(training.adam_beta1, training.adam_beta2),
        epsilon=training.adam_epsilon,
    )

    def steps(max_tokens: int) -> TrainingSteps:
        return TrainingSteps(
            task,
            seed=config.seed,
            train_batch_size=training.train_batch_size,
            max_tokens=max_tokens,
            max_examples=training.micro_batch_size,
            rank=processes.rank,
            world_size=processes.count,
        )

    micro_batch_tokens = machine.micro_batch_tokens(packed=task.packs)
    total_steps = training.epochs * steps(micro_batch_tokens).steps_per_epoch
    total_steps = min(total_steps, training.max_steps or total_steps)
    stopping = training.early_stopping
    trainer = Trainer(
        task,
        model,
        steps=steps,
        total_steps=total_steps,
        max_tokens=micro_batch_tokens,
        seed=config.seed,
        optimizer=optimizer,
        scheduler=build_scheduler(
            training.scheduler,
            optimizer,
            total_steps=total_steps,
            warmup_ratio=training.warmup_ratio,
        ),
        max_grad_norm=training.max_grad_norm,
        monitor=training.monitor,
        early_stopping=EarlyStopping(
            mode=direction,
            patience=stopping.patience if stopping else None,
            min_delta=stopping.min_delta if stopping else 0.0,
        ),
        eval_steps=training.eval_steps,
        save_steps=training.save_steps,
        loader_options=machine.loader_options,
        processes=processes,
        precision=machine.precision,
        evaluator=_evaluator(config, machine, task),
        tracker=tracker,
        progress=ConsoleProgress(
            total_steps=total_steps, first_step=checkpoint.step if checkpoint else 0
        )
        if processes.is_main
        else NullProgress(),
        checkpoint_dir=directory.checkpoints,
        config=config.model_dump(),
        metadata={
            **task.metadata(),
            "fingerprints": data.fingerprints(),
            "seen_texts": sorted(data.text_hashes("train", "val").values()),
        },
        on_evaluation=on_evaluation,
    )
    if checkpoint is not None:
        trainer.restore(checkpoint)
    return trainer.fit()


def _finish(
    config: TrainConfig,
    machine: Hardware,
    task: ReportingTask,
    directory: RunDirectory,
    data: PreparedData,
    tracker: Tracker,
    outcome: TrainingOutcome,
) -> RunResult:
    """Judge the best checkpoint on val and close the books."""
    machine.processes.wait()
    checkpoint = load_checkpoint(directory.best_checkpoint, task=config.task.name)
    task.model.load_state_dict(checkpoint.weights)
    result = _judge(
        _evaluator(config, machine, task),
        task,
        directory,
        tracker,
        split="val",
        checkpoint=checkpoint,
        # Of a metric MLflow shows the value with the latest step, which must be the kept model's.
        step=outcome.step,
    )
    if machine.processes.is_main:
        record_manifest(
            config,
            directory,
            data,
            tracker,
            status="finished",
            weights=weights_sha256(checkpoint.weights),
            extra={
                "steps": outcome.step,
                "best_step": outcome.best_step,
                "stopped_early": outcome.stopped_early,
            },
        )
        for path in (directory.manifest, directory.history):
            tracker.log_artifact(path)
        point_to_latest(Path(config.output_dir), directory)
    return result


def _judge(
    evaluator: Evaluator,
    task: ReportingTask,
    directory: RunDirectory,
    tracker: Tracker,
    *,
    split: str,
    checkpoint: Checkpoint,
    step: int,
) -> RunResult:
    """Evaluate, report, and write metrics and predictions of `split`, tracked at `step`."""
    began = time.perf_counter()
    evaluation = evaluator.evaluate(task.model, split, calibration=checkpoint.calibration)
    logger.info("Predicted %s in %.1f s.", split, time.perf_counter() - began)
    predictions, calibration = evaluation.predictions, evaluation.calibration
    figures = task.report(predictions, split=split, calibration=calibration)
    follow_ups = {
        name: evaluator.predict(task.model, name)
        for name in task.follow_ups(predictions, split=split, calibration=calibration)
    }
    figures |= task.follow_up_report(predictions, follow_ups, split=split, calibration=calibration)
    metrics: MetricValues = {f"{split}/{key}": value for key, value in figures.items()}
    if evaluator.is_main:
        directory.add_metrics(metrics)
        records = task.records(predictions, split=split, calibration=calibration)
        lines = directory.write_predictions(split, records)
        tracker.log_metrics(
            {key: value for key, value in metrics.items() if not isinstance(value, str)},
            step=step,
        )
        for path in (directory.metrics, lines):
            tracker.log_artifact(path)
    return RunResult(directory.path, dict(metrics), task.summary(figures))


def _evaluator(config: TrainConfig, machine: Hardware, task: ReportingTask) -> Evaluator:
    return Evaluator(
        task,
        processes=machine.processes,
        precision=machine.precision,
        eval_batch_size=config.training.eval_batch_size,
        max_tokens=machine.eval_tokens(packed=task.packs),
        loader_options=machine.loader_options,
    )
