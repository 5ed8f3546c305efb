"""The story of a stage: from a command line to a study, its trials, and what they came to."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
from psy_agents_noaug.errors import ConfigError, faults_message
from psy_agents_noaug.hpo.best_config import BestConfig, read_best_config
from psy_agents_noaug.hpo.objective import Objective, Place
from psy_agents_noaug.hpo.plans import Plan
from psy_agents_noaug.hpo.refit import Refit
from psy_agents_noaug.hpo.search import Search
from psy_agents_noaug.hpo.settings import StageConfig
from psy_agents_noaug.hpo.storage import StudyLock, StudyStorage, open_storage, storage_url
from psy_agents_noaug.hpo.strategies import build_pruner, build_sampler
from psy_agents_noaug.hpo.workers import Worker
from psy_agents_noaug.run.directory import differences
from psy_agents_noaug.run.records import tracking_status
from psy_agents_noaug.run.train import RunPreview, survey
from psy_agents_noaug.tracking.base import NullTracker, Tracker
from psy_agents_noaug.tracking.mlflow import MlflowTracker

TASKS = ("criteria", "evidence", "joint")
# Of a single run: a study sets them itself.
_OF_A_RUN = ("run_name", "resume", "best_config")
_GRACE_SECONDS = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A stage as it was asked for.

    given: the overrides of trainings on the command line; base: what all trials have in common, those
    and the stage's own and inherited ones; config: of a training with the base alone.
    folder: where the results go. argv: the command line.
    """

    task: str
    stage: StageConfig
    given: dict[str, Any]
    base: dict[str, Any]
    config: TrainConfig
    best: BestConfig | None
    folder: Path
    argv: tuple[str, ...]

    @property
    def study_name(self) -> str:
        return self.stage.study or f"{self.task}_{self.stage.name}"

    @property
    def runs(self) -> Path:
        """The folder of the trials' run directories."""
        return self.folder / "trials" / self.study_name


def run_stage(argv: Sequence[str]) -> str:
    """Run, or go on with, the stage that a command line asks for; return a table of its results.

    Raises:
        ConfigError, DataError: the user's to mend.
        Interrupted: stopped by a signal; the same command goes on.
    """
    request = read_request(argv)
    plan = _plan(request)
    plan.check()
    stage = request.stage
    url = storage_url(stage.storage, request.folder)
    _check_workers(stage, url)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A trial is told of in one line.
    logging.getLogger("psy_agents_noaug").setLevel(logging.WARNING)
    logging.getLogger("psy_agents_noaug.hpo").setLevel(logging.INFO)
    request.folder.mkdir(parents=True, exist_ok=True)
    with _alone(request, url):
        storage = open_storage(
            url,
            heartbeat_seconds=stage.heartbeat_seconds,
            patience_seconds=stage.patience_seconds,
        )
        prospect = survey(request.config)
        # What is to be known of the data has been told now, and is the same for every trial.
        logging.getLogger("psy_agents_noaug.run.data").setLevel(logging.ERROR)
        lock = StudyLock(url, request.study_name)
        with lock.held(storage):
            study = _open_study(request, plan, storage, prospect)
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
                maximise=prospect.maximise,
            )
            with _other_workers(request):
                worker.work()
            if not stage.reports:
                return ""
            tracker.close_children()
            report = plan.report(study, request.folder, prospect)
            tracker.log_metrics(report.figures, step=0)
            for path in report.files:
                tracker.log_artifact(path)
            return report.summary


def read_request(argv: Sequence[str]) -> Request:
    """Take the command line apart: the stage, the task, and the settings of the trainings.

    A stage that goes on with another's best inherits the settings that its trials had in common.

    Raises:
        ConfigError: naming what is missing or wrong.
    """
    values = given([_quoted(item) for item in argv])
    stages = sorted(p.stem for p in (CONFIG_DIR / "hpo").glob("*.yaml") if p.stem[0] != "_")
    name, task = values.pop("hpo", None), values.pop("task", None)
    if name not in stages:
        raise ConfigError(f"`hpo` must be one of {', '.join(stages)}, but is {name} instead.")
    if task not in TASKS:
        raise ConfigError(f"`task` must be one of {', '.join(TASKS)}, but is {task} instead.")
    own = {key.removeprefix("hpo."): v for key, v in values.items() if key.startswith("hpo.")}
    stage = validate(StageConfig, compose_config(f"hpo/{name}", to_overrides(own)))
    of_training = {key: v for key, v in values.items() if not key.startswith("hpo.")}
    refused = [key for key in _OF_A_RUN if key in of_training]
    if refused:
        raise ConfigError(f"A study sets `{'`, `'.join(refused)}` itself: leave it out.")
    if stage.workers > 1 and "training.num_threads" not in of_training:
        of_training["training.num_threads"] = max(1, (os.cpu_count() or 1) // stage.workers)
    config = load_train_config(f"{task}/train", to_overrides(of_training))
    folder = Path(config.output_dir) / f"hpo_stage{stage.stage}" / task
    best = _starts_from(stage, task, folder)
    base = {**(best.base if best else {}), **flat(stage.settings), **of_training}
    config = load_train_config(f"{task}/train", to_overrides(base))
    resolved = config.model_dump()
    base = {key: _resolved(key, value, resolved) for key, value in base.items()}
    of_training = {key: base[key] for key in of_training}
    return Request(task, stage, of_training, base, config, best, folder, tuple(argv))


def _resolved(key: str, value: Any, config: dict[str, Any]) -> Any:
    """What an interpolation (`${output_dir}`) stands for, as another file cannot know it."""
    if not isinstance(value, str) or "${" not in value:
        return value
    here: Any = config
    for part in key.split("."):
        here = here[part]
    return here


def _quoted(item: str) -> str:
    """Let a storage's URL have parameters (`?sslmode=require`), whose = Hydra's grammar would refuse."""
    key, _, value = item.partition("=")
    return (
        f"{key}='{value}'"
        if key == "hpo.storage" and value[:1] not in "'\"" and value != "null"
        else item
    )


def _starts_from(stage: StageConfig, task: str, folder: Path) -> BestConfig | None:
    """Read the best configuration that the stage narrows around or trains again."""
    source = stage.narrow or stage.refit
    if source is None:
        return None
    before = folder.parents[1] / f"hpo_stage{stage.stage - 1}" / task / "best_config.yaml"
    path = Path(source.best_config) if source.best_config else before
    if not path.is_file():
        key = "narrow" if stage.narrow else "refit"
        raise ConfigError(
            f"`hpo.{key}.best_config` must be the file of an earlier stage, but {path} is not there. "
            "Run that stage first, or name another file."
        )
    best = read_best_config(path, task=task)
    logger.info("Going on with trial %d of %s (%s).", best.trial, best.study, path)
    return best


def _plan(request: Request) -> Plan:
    if request.stage.refit:
        assert request.best is not None
        return Refit(
            request.task,
            request.stage,
            best=request.best,
            given={**flat(request.stage.settings), **request.given},
            config=request.config,
            runs=request.runs,
        )
    return Search(
        request.task, request.stage, base=request.base, config=request.config, best=request.best
    )


def _check_workers(stage: StageConfig, url: str) -> None:
    if url.startswith("sqlite") and stage.workers > 1:
        raise ConfigError(
            f"`hpo.workers` must be 1 with SQLite, but is {stage.workers} instead: SQLite locks the "
            "whole file for every write, and cannot tell a dead worker from a slow one. Give "
            "`hpo.storage=postgresql://...` for more."
        )


@contextmanager
def _alone(request: Request, url: str) -> Iterator[None]:
    """Keep a second process from a study in SQLite."""
    if not url.startswith("sqlite"):
        yield
        return
    database = Path(str(sqlalchemy.make_url(url).database)).absolute()
    database.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(database.with_name(f".{database.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"Another process works on {database}, and SQLite is for one. Wait for it, or start "
            "both with `hpo.storage=postgresql://...`."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _open_study(
    request: Request, plan: Plan, storage: StudyStorage, prospect: RunPreview
) -> optuna.Study:
    """Begin the study, or go on with it if it is of the same settings; under the lock."""
    name = request.study_name
    with suppress(DuplicatedStudyError):
        optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize" if prospect.maximise else "minimize",
        )
    study = optuna.load_study(
        storage=storage, study_name=name, pruner=build_pruner(request.stage.pruner)
    )
    settings = _settings_of_all(request, plan, prospect)
    recorded = study.user_attrs.get("settings")
    if recorded is None:
        study.set_user_attr("settings", settings)
        recorded = settings
    changes = [
        f"`{key}` was {recorded.get(key)!r}, but is {settings.get(key)!r} now"
        for key in settings
        if key != "config" and settings[key] != recorded.get(key)
    ]
    changes += differences(recorded["config"], request.config)
    if changes:
        raise ConfigError(
            faults_message(
                f"The study {name} was begun with other settings; go on with those, or begin another by "
                "`hpo.study=NAME`:",
                changes,
            )
        )
    known = [t.system_attrs.get("fixed_params") for t in study.get_trials(deepcopy=False)]
    for point in plan.first_points():
        if point not in known:
            study.enqueue_trial(point)
    return study


def _settings_of_all(request: Request, plan: Plan, prospect: RunPreview) -> dict[str, Any]:
    """Return what all workers of a study, and who goes on with it, must agree on; JSON-able."""
    settings = {
        "hpo.sampler": request.stage.sampler.model_dump(),
        "hpo.pruner": request.stage.pruner.model_dump(),
        "hpo.space": plan.space.to_json(),
        "the best to go on with": plan.starts_from,
        "its settings": dict(request.best.overrides) if request.best else None,
        "the data": prospect.fingerprints,
        "config": yaml.safe_load(to_yaml(request.config)),
    }
    del settings["config"]["tracking"]  # may hold an address; no result depends on it
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
        place=Place(
            runs=request.runs,
            tracking={"tracking.uri": uri} if config.tracking.name != "none" else {},
            parent_run_id=tracker.run_id,
        ),
        keep_checkpoints=plan.keep_checkpoints,
        finish=plan.finish,
    )


def _open_tracker(request: Request, study: optuna.Study) -> Tracker:
    """Open the stage's run, or the one that the study has; under the lock."""
    tracking = request.config.tracking
    if tracking.name == "none":
        return NullTracker()
    tracker = MlflowTracker(
        uri=tracking.uri,
        experiment=tracking.experiment or f"psy_agents_noaug/{request.task}",
        run_name=request.study_name,
        output_dir=Path(request.config.output_dir),
        run_id=study.user_attrs.get("mlflow_run_id"),
        system_metrics=False,
    )
    study.set_user_attr("mlflow_run_id", tracker.run_id)
    stage = request.stage.model_dump(exclude={"storage", "workers", "reports"})
    tracker.log_params({"hpo": stage, **request.config.model_dump()})
    return tracker


@contextmanager
def _other_workers(request: Request) -> Iterator[None]:
    """Start the other local workers, and wait for them; what ends this one ends them too.

    Raises:
        ConfigError: one of them stopped for an error.
    """
    code = "import sys; from psy_agents_noaug.cli import run_hpo; sys.exit(run_hpo(sys.argv[1:]))"
    # The settings are the same for all: the number of threads has been decided here.
    argv = [*request.argv, "hpo.workers=1", "hpo.reports=false"]
    if request.stage.workers > 1:
        argv.append(f"training.num_threads={request.base['training.num_threads']}")
    processes: dict[Path, subprocess.Popen[bytes]] = {}
    for number in range(1, request.stage.workers):
        log = request.folder / f"worker-{number}.log"
        with log.open("wb") as file:
            processes[log] = subprocess.Popen(
                [sys.executable, "-c", code, *argv], stdout=file, stderr=file
            )
    try:
        yield
        codes = {log: process.wait() for log, process in processes.items()}
    except BaseException:
        _stop(list(processes.values()))
        raise
    killed = [str(log) for log, code in codes.items() if code < 0]
    if killed:
        logger.warning("Workers were killed; see %s.", ", ".join(killed))
    failed = [f"{log} (exit {code})" for log, code in codes.items() if code > 0]
    if failed:
        raise ConfigError(
            f"Workers stopped for an error, which stands at the end of {', '.join(failed)}. What the "
            "others did is kept; start the same command again when it is mended."
        )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let workers save what they are at."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
