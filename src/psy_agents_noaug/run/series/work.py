"""The loop of a series: train what is not trained yet, evaluate it on its fold, and pool."""

import gc
import logging
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

from filelock import FileLock, Timeout

from psy_agents_noaug.config.schema import EvaluateConfig, SeriesConfig, TrainConfig
from psy_agents_noaug.config.series import Kind
from psy_agents_noaug.errors import ConfigError, PsyAgentsError
from psy_agents_noaug.metrics.tables import format_value
from psy_agents_noaug.run.evaluate import RunResult, evaluate
from psy_agents_noaug.run.local_workers import other_workers
from psy_agents_noaug.run.records import (
    ReportWriter,
    connected_tracker,
    make_report_in,
    no_report,
    tracking_status,
)
from psy_agents_noaug.run.series.plan import (
    PlannedRun,
    Series,
    mlflow_run_of,
    open_series,
    plan_lock,
    write_plan,
)
from psy_agents_noaug.run.series.report import report_series, send_series
from psy_agents_noaug.run.train import train
from psy_agents_noaug.tracking.base import NullTracker, Tracker
from psy_agents_noaug.utils.files import storing, sweep
from psy_agents_noaug.utils.logs import log_level
from psy_agents_noaug.utils.out_of_memory import give_memory_back

_POLL_SECONDS = 2.0
_DATA_LOG = "psy_agents_noaug.run.data"

logger = logging.getLogger(__name__)


def run_series(
    kind: Kind,
    settings: SeriesConfig,
    config: TrainConfig,
    *,
    overrides: Sequence[str],
    write_report: ReportWriter = no_report,
) -> RunResult | None:
    """Train with every fold and seed, or go on where the same command was stopped, and pool.

    Every run is an ordinary training; the fold of a cross-validation is evaluated once, when its
    training has ended. Any number of commands may work on the same series.

    Args:
        kind: `cv`, `train` or `refit`, see `Series`.
        settings: folds, seeds and workers.
        config: of the trainings, as `load_series_config` returns it.
        overrides: the command line without its verb, for the other workers.
        write_report: writes the report of what is pooled.

    Returns:
        The pooled figures; None with `reports=false`.

    Raises:
        ConfigError, DataError, CheckpointError, StorageError: the user's to mend.
        Interrupted: stopped by a signal, state saved.
        NonFiniteError, LoaderError: as `train`.
    """
    if os.environ.get("RANK") and int(os.environ.get("WORLD_SIZE") or "1") > 1:
        raise ConfigError(
            "Each training of a series has one process: leave out torchrun, and give `workers`."
        )
    with (
        log_level("psy_agents_noaug", logging.WARNING),
        log_level(__name__, logging.INFO),
    ):
        series = open_series(kind, settings, config)
        verb = "cv" if kind == "cv" else "train"
        others = [verb, f"task={config.task.name}", *overrides, "workers=1", "reports=false"]
        tracker = _open_tracker(series) if settings.reports else NullTracker()
        with tracking_status(tracker):
            with other_workers(
                others,
                series.directory.path,
                count=settings.workers,
                num_threads=config.training.num_threads,
                device=config.training.device,
            ):
                _work(series, workers=settings.workers, waits=False)
            if not settings.reports:
                return None
            # What killed workers have left, and what those of other machines still do.
            _work(series, workers=1, waits=True)
            result = report_series(series, mlflow_run_id=tracker.run_id)
            send_series(series, tracker, result.metrics)
            if config.report:
                make_report_in(series.directory, tracker, write_report)
            return result


def _open_tracker(series: Series) -> Tracker:
    """Open the tracker's run that has the pooled figures, and shows the trainings below it."""
    tracking = series.config.tracking
    if tracking.name == "none":
        return NullTracker()
    # The trainings sample the machine.
    quiet = tracking.model_copy(update={"system_metrics": False})
    with plan_lock(series):
        tracker = connected_tracker(
            series.config.model_copy(update={"tracking": quiet}),
            run_name=series.folder,
            run_id=mlflow_run_of(series),
            remedy="The same command again delivers the rest.",
        )
        write_plan(series, tracker.run_id)
    return tracker


def _work(series: Series, *, workers: int, waits: bool) -> None:
    """Do every run that is not done and that no other process does.

    Args:
        series: the runs.
        workers: how many processes work here, for the time that is left.
        waits: whether to wait for the runs of other processes.
    """
    began, n_done_here, is_waiting = time.monotonic(), 0, False
    while True:
        n_busy = 0
        for run in series.runs:
            if _is_done(series, run):
                continue
            with ExitStack() as stack:
                with storing(series.directory.path):
                    try:
                        lock = FileLock(series.directory.path / f".{run.name}.lock", timeout=0)
                        stack.enter_context(lock)
                    except Timeout:  # an OSError, but no refusal of the disk's
                        n_busy += 1
                        continue
                if _is_done(series, run):
                    continue
                figures = _do(series, run)
            n_done_here += 1
            n_left = sum(not _is_done(series, other) for other in series.runs)
            seconds = (time.monotonic() - began) / n_done_here
            logger.info(
                "%s: %s; %d of %d runs done, about %s left",
                run.name,
                figures,
                len(series.runs) - n_left,
                len(series.runs),
                timedelta(seconds=round(seconds * n_left / workers)),
            )
        if not n_busy or not waits:
            if not n_done_here and not waits:
                logger.info("No run is left to do here.")
            return
        if not is_waiting:
            logger.info("Waiting for %d runs of other processes.", n_busy)
        is_waiting = True
        time.sleep(_POLL_SECONDS)


def _is_trained(run: PlannedRun) -> bool:
    return bool(run.directory.read_manifest().get("status") == "finished")


def _is_done(series: Series, run: PlannedRun) -> bool:
    """Whether a run is trained and evaluated. The last checkpoint is removed when both are done."""
    directory = run.directory
    return (
        not directory.last_checkpoint.exists()
        and directory.predictions_of(series.split).is_file()
        and _is_trained(run)
    )


def _do(series: Series, run: PlannedRun) -> str:
    """Train and evaluate a run, from where it was stopped. Return its main figures, in words."""
    directory, config = run.directory, run.config
    # Every seed of a fold has the same data.
    shown = logging.WARNING if run.seed == series.seeds[0] else logging.ERROR
    metrics: dict[str, Any] = {}
    logger.info("%s begins, or goes on.", run.name)
    sweep(directory.path / "predictions")
    try:
        if not _is_trained(run):
            with log_level(_DATA_LOG, shown):
                metrics |= train(config, parent_run_id=mlflow_run_of(series)).metrics
        # The fold, or val whose predictions were lost.
        if series.folds or not directory.predictions_of(series.split).is_file():
            with log_level(_DATA_LOG, logging.ERROR):
                metrics |= evaluate(
                    EvaluateConfig(checkpoint=str(directory.best_checkpoint), split=series.split),
                    task_name=config.task.name,
                    explicit={
                        "tracking": config.tracking.model_dump(),
                        "output_dir": config.output_dir,
                    },
                    tracking_is_required=False,
                ).metrics
    except PsyAgentsError:
        logger.error("%s was stopped by an error; the same command goes on with it.", run.name)
        raise
    finally:
        gc.collect()
        give_memory_back()
    with storing(directory.last_checkpoint):
        directory.last_checkpoint.unlink(missing_ok=True)
    keys = [config.training.monitor, f"{series.split}/{config.task.headline_metrics[0]}"]
    # The test split of a run is its fold; that of the corpus may be another.
    names = {key: key.replace("test/", "fold/") if series.folds else key for key in keys}
    return ", ".join(f"{names[k]} {format_value(metrics[k])}" for k in names if k in metrics)
