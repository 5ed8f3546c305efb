"""Run a stage: from a command line to a study, its trials and their results."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
import yaml
from filelock import FileLock, Timeout
from optuna.exceptions import DuplicatedStudyError
from optuna.trial import Trial

from psy_agents_noaug.config.loading import (
    CONFIG_DIR,
    compose_config,
    flat,
    given,
    load_train_config,
    to_overrides,
    to_yaml,
    validate,
)
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import ConfigError, not_one_of
from psy_agents_noaug.hpo.best_config import BestConfig, read_best_config
from psy_agents_noaug.hpo.objective import Objective, OutputSettings
from psy_agents_noaug.hpo.plans import Plan
from psy_agents_noaug.hpo.refit import Refit
from psy_agents_noaug.hpo.search import Search
from psy_agents_noaug.hpo.settings import StageConfig
from psy_agents_noaug.hpo.storage import StudyLock, StudyStorage, open_storage, storage_url
from psy_agents_noaug.hpo.strategies import build_pruner, build_sampler
from psy_agents_noaug.hpo.workers import Worker
from psy_agents_noaug.run.directory import check_same_settings
from psy_agents_noaug.run.local_workers import other_workers
from psy_agents_noaug.run.records import tracking_status
from psy_agents_noaug.run.train import RunPreview, preview
from psy_agents_noaug.tasks.registry import task_names
from psy_agents_noaug.tracking.base import NullTracker, Tracker
from psy_agents_noaug.tracking.mlflow import MlflowTracker
from psy_agents_noaug.utils.files import make_folder, remove_empty
from psy_agents_noaug.utils.logs import log_level

# Settings of a single run, which a study sets for each trial.
_SET_BY_THE_STUDY = ("run_name", "resume", "best_config")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A stage and its settings, as read from a command line.

    Args:
        task: name of the task.
        stage: settings of the stage.
        explicit: training settings on the command line, by dotted keys.
        base: training settings of all trials: those of an earlier stage, of this stage, and `explicit`.
        config: configuration of a training with `base` only.
        best: the trial of an earlier stage from which this one starts, if any.
        folder: of the results.
        argv: the command line.
    """

    task: str
    stage: StageConfig
    explicit: dict[str, Any]
    base: dict[str, Any]
    config: TrainConfig
    best: BestConfig | None
    folder: Path
    argv: tuple[str, ...]

    @property
    def study_name(self) -> str:
        return self.stage.study or f"{self.task}_{self.stage.name}"

    @property
    def runs_folder(self) -> Path:
        """Folder of the run directories of the trials."""
        return self.folder / "trials" / self.study_name


def run_stage(argv: Sequence[str]) -> str:
    """Run or resume the stage of a command line. Return a table of its results.

    Raises:
        ConfigError, DataError: the user can fix the cause.
        Interrupted: a signal stopped the stage; the same command resumes it.
    """
    request = read_request(argv)
    plan = _plan(request)
    plan.check()
    stage = request.stage
    url = storage_url(stage.storage, request.folder)
    _check_workers(stage, url)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Each trial is logged in one line, without the log of its training.
    with (
        log_level("psy_agents_noaug", logging.WARNING),
        log_level("psy_agents_noaug.hpo", logging.INFO),
    ):
        # Before anything is made, as it may find the data or the settings at fault.
        run_preview = preview(request.config)
        with (
            _folder(request.folder),
            _sqlite_lock(url),
            closing(
                open_storage(
                    url,
                    heartbeat_seconds=stage.heartbeat_seconds,
                    patience_seconds=stage.patience_seconds,
                )
            ) as storage,
            log_level("psy_agents_noaug.run.data", logging.ERROR),
        ):
            # `preview` has logged the data reports, which are the same for every trial.
            return _work(request, plan, storage, run_preview)


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make the folder of the results; if it stays empty, it is removed again."""
    made = make_folder(path)
    try:
        yield
    finally:
        remove_empty(made)


def _work(request: Request, plan: Plan, storage: StudyStorage, run_preview: RunPreview) -> str:
    """Work on the study until its trials are done. Return a table of its results."""
    stage = request.stage
    lock = StudyLock(storage_url(stage.storage, request.folder), request.study_name)
    with lock.held(storage):
        study = _open_study(request, plan, storage, run_preview)
        tracker = _open_tracker(request, study)
    with tracking_status(tracker):
        worker = Worker(
            study,
            storage=storage,
            lock=lock,
            n_trials=plan.n_trials,
            max_retries=stage.max_retries,
            sampler=lambda before: build_sampler(stage.sampler, n_trials_before=before),
            objective=_objective(request, plan, tracker),
            maximise=run_preview.maximise,
        )
        with other_workers(
            ["tune", *request.argv, "hpo.workers=1", "hpo.reports=false"],
            request.folder,
            count=stage.workers,
            num_threads=request.config.training.num_threads,
            device=request.config.training.device,
        ):
            worker.work()
        if not stage.reports:
            return ""
        tracker.close_children()
        report = plan.report(study, request.folder, run_preview)
        tracker.log_metrics(report.metrics, step=0)
        for path in report.files:
            tracker.log_artifact(path)
        return report.summary


def read_request(argv: Sequence[str]) -> Request:
    """Read the stage, the task and the training settings from a command line.

    A stage that starts from the best trial of an earlier one inherits the settings that all trials of
    that stage have in common.

    Raises:
        ConfigError: a setting is missing or wrong.
    """
    values = given([_quoted(item) for item in argv])
    stages = sorted(p.stem for p in (CONFIG_DIR / "hpo").glob("*.yaml") if p.stem[0] != "_")
    name, task = values.pop("hpo", None), values.pop("task", None)
    if name not in stages:
        raise ConfigError(not_one_of("hpo", stages, name))
    if task not in task_names():
        raise ConfigError(not_one_of("task", task_names(), task))
    own = {key.removeprefix("hpo."): v for key, v in values.items() if key.startswith("hpo.")}
    stage = validate(StageConfig, compose_config(f"hpo/{name}", to_overrides(own)), prefix="hpo.")
    explicit = {key: v for key, v in values.items() if not key.startswith("hpo.")}
    refused = [key for key in _SET_BY_THE_STUDY if key in explicit]
    if refused:
        raise ConfigError(f"A study sets `{'`, `'.join(refused)}` itself: leave it out.")
    if stage.workers > 1 and "training.num_threads" not in explicit:
        explicit["training.num_threads"] = max(1, (os.cpu_count() or 1) // stage.workers)
    config = load_train_config(task, to_overrides(explicit))
    folder = Path(config.output_dir) / f"hpo_stage{stage.stage}" / task
    best = _read_best(stage, task, folder)
    base = {**(best.base if best else {}), **flat(stage.settings), **explicit}
    config = load_train_config(task, to_overrides(base))
    resolved = config.model_dump()
    base = {key: _resolved(key, value, resolved) for key, value in base.items()}
    explicit = {key: base[key] for key in explicit}
    return Request(task, stage, explicit, base, config, best, folder, tuple(argv))


def _resolved(key: str, value: Any, config: dict[str, Any]) -> Any:
    """Return the value of a setting whose text is an interpolation, such as `${output_dir}`.

    `best_config.yaml` records the value, because a later command may resolve the text to another one.
    """
    if not isinstance(value, str) or "${" not in value:
        return value
    section: Any = config
    for name in key.split("."):
        section = section[name]
    return section


def _quoted(item: str) -> str:
    """Quote the URL of `hpo.storage`: Hydra's grammar refuses the = in `?sslmode=require`."""
    key, _, value = item.partition("=")
    return (
        f"{key}='{value}'"
        if key == "hpo.storage" and value[:1] not in "'\"" and value != "null"
        else item
    )


def _read_best(stage: StageConfig, task: str, folder: Path) -> BestConfig | None:
    """Read the best trial of an earlier stage, for a stage that narrows around it or trains it again."""
    source = stage.narrow or stage.refit
    if source is None:
        return None
    before = folder.parents[1] / f"hpo_stage{stage.stage - 1}" / task / "best_config.yaml"
    path = Path(source.best_config) if source.best_config else before
    if not path.is_file():
        key = "narrow" if stage.narrow else "refit"
        raise ConfigError(
            f"`hpo.{key}.best_config` must be the file of an earlier stage, but {path} does not exist. "
            "Run that stage first, or name another file."
        )
    best = read_best_config(path, task=task)
    logger.info("Starting from trial %d of %s (%s).", best.trial, best.study, path)
    return best


def _plan(request: Request) -> Plan:
    if request.stage.refit:
        assert request.best is not None
        return Refit(
            request.task,
            request.stage,
            best=request.best,
            explicit={**flat(request.stage.settings), **request.explicit},
            config=request.config,
            runs_folder=request.runs_folder,
        )
    return Search(
        request.task, request.stage, base=request.base, config=request.config, best=request.best
    )


def _check_workers(stage: StageConfig, url: str) -> None:
    if url.startswith("sqlite") and stage.workers > 1:
        raise ConfigError(
            f"`hpo.workers` must be 1 with SQLite, but is {stage.workers} instead: SQLite locks the "
            "whole file for every write, and has no heartbeats to detect a dead worker. Use "
            "`hpo.storage=postgresql://...` for more workers."
        )


@contextmanager
def _sqlite_lock(url: str) -> Iterator[None]:
    """Keep a second process out of a SQLite database; do nothing for PostgreSQL."""
    if not url.startswith("sqlite"):
        yield
        return
    database = Path(str(sqlalchemy.make_url(url).database)).absolute()
    make_folder(database.parent)
    lock = FileLock(database.with_name(f".{database.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"Another process uses {database}, and SQLite allows only one. Wait until it ends, or start "
            "both with `hpo.storage=postgresql://...`."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _open_study(
    request: Request, plan: Plan, storage: StudyStorage, run_preview: RunPreview
) -> optuna.Study:
    """Create the study, or open it if its settings are the same. The caller holds the lock."""
    name = request.study_name
    with suppress(DuplicatedStudyError):
        optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize" if run_preview.maximise else "minimize",
        )
    study = optuna.load_study(
        storage=storage, study_name=name, pruner=build_pruner(request.stage.pruner)
    )
    settings = _study_settings(request, plan, run_preview)
    recorded = study.user_attrs.get("settings")
    if recorded is None:
        study.set_user_attr("settings", settings)
        recorded = settings
    check_same_settings(
        recorded,
        {key: value for key, value in settings.items() if key != "config"},
        config=request.config,
        headline=f"The study {name} was started with other settings; use those, or start another "
        "study with `hpo.study=NAME`:",
    )
    if request.stage.reports or "budget" not in study.user_attrs:
        # Read by all workers, those of earlier commands and of other machines too.
        budget = {"n_trials": plan.n_trials, "max_retries": request.stage.max_retries}
        study.set_user_attr("budget", budget)
    known = [t.system_attrs.get("fixed_params") for t in study.get_trials(deepcopy=False)]
    for point in plan.first_points():
        if point not in known:
            study.enqueue_trial(point)
    return study


def _study_settings(request: Request, plan: Plan, run_preview: RunPreview) -> dict[str, Any]:
    """Return the settings that all workers and resumptions of a study must share; JSON-able."""
    settings = {
        "hpo.sampler": request.stage.sampler.model_dump(),
        "hpo.pruner": request.stage.pruner.model_dump(),
        "hpo.space": plan.space.to_json(),
        "the best to go on with": plan.starts_from,
        "its settings": dict(request.best.overrides) if request.best else None,
        "the data": run_preview.fingerprints,
        "config": yaml.safe_load(to_yaml(request.config)),
    }
    del settings["config"]["tracking"]  # may hold an address, and no result depends on it
    return dict(json.loads(json.dumps(settings)))


def _objective(request: Request, plan: Plan, tracker: Tracker) -> Objective:
    config = request.config
    own_database = Path(config.output_dir).absolute() / "mlflow.db"
    uri = config.tracking.uri or f"sqlite:///{own_database.as_posix()}"

    def propose(trial: Trial) -> dict[str, Any]:
        return plan.overrides(plan.space.suggest(trial))

    return Objective(
        request.task,
        propose=propose,
        monitor=config.training.monitor,
        output=OutputSettings(
            runs_folder=request.runs_folder,
            tracking={"tracking.uri": uri} if config.tracking.name != "none" else {},
            parent_run_id=tracker.run_id,
        ),
        keep_checkpoints=plan.keep_checkpoints,
        finish=plan.finish,
    )


def _open_tracker(request: Request, study: optuna.Study) -> Tracker:
    """Open the tracker's run of the study, or start it. The caller holds the lock."""
    tracking = request.config.tracking
    if tracking.name == "none":
        return NullTracker()
    tracker = MlflowTracker(
        uri=tracking.uri,
        experiment=tracking.experiment or f"psy_agents_noaug/{request.task}",
        run_name=request.study_name,
        output_dir=Path(request.config.output_dir),
        remedy="the same command again delivers the rest.",
        run_id=study.user_attrs.get("mlflow_run_id"),
        system_metrics=False,
        patience_seconds=tracking.patience_seconds,
    )
    study.set_user_attr("mlflow_run_id", tracker.run_id)
    stage = request.stage.model_dump(exclude={"storage", "workers", "reports"})
    tracker.log_params({"hpo": stage, **request.config.model_dump()})
    return tracker
