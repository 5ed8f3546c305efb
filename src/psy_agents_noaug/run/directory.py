"""The folder that a run leaves behind: its name, its lock, and going on where a run stopped."""

import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from psy_agents_noaug.config.loading import as_of_today, to_yaml, validate_train_config
from psy_agents_noaug.config.overrides import one_line
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import (
    ConfigError,
    DataError,
    RunInUseError,
    StorageError,
    faults_message,
)
from psy_agents_noaug.training.names import BEST, LAST
from psy_agents_noaug.utils.files import (
    make_folder,
    read_json,
    remove_empty,
    storing,
    sweep,
    temporary_beside,
    write_bytes,
    write_json,
    write_text,
)

logger = logging.getLogger(__name__)

# The folder of a run for evaluations of other weights, data and settings than its own.
_OTHERS = "evaluations"

# Who looks whether a run is in use holds its lock for a moment, which must refuse no training.
_LOCK_SECONDS = 0.2

# What may differ between a run and its resumption, because no result depends on it.
_FREE_KEYS = {
    "run_name",
    "resume",
    "best_config",
    "output_dir",
    "tracking",
    "report",
    "protocol.notes",
    "protocol.published",
    "data.token_cache",
    "data.subgroups",
    "training.save_steps",
    "training.num_workers",
    "training.pin_memory",
    "training.prefetch_factor",
    "training.loader_timeout",
}


class RunDirectory:
    """Paths of a run's files, and how they are written. See `docs` for what each holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.manifest = path / "manifest.json"
        self.metrics = path / "metrics.json"
        self.history = path / "history.csv"
        self.splits = path / "splits.json"
        self.alignment = path / "alignment.json"
        self.evaluations = path / "evaluations.jsonl"
        self.old_evaluations = path / "looks.jsonl"  # its name in 0.1.0
        self.other_evaluations = path / _OTHERS
        self.seen_posts_key = path / "seen_posts.key"
        self.report = path / "report.html"
        self.figures_folder = path / "figures"
        self.tables_folder = path / "tables"
        self.lock = path / ".lock"
        self.checkpoints = path / "checkpoints"
        self.best_checkpoint = self.checkpoints / BEST
        self.last_checkpoint = self.checkpoints / LAST

    @property
    def of_training(self) -> "RunDirectory":
        """The directory of the run, where this is a folder of its other evaluations; else itself."""
        return RunDirectory(self.path.parent.parent) if self.path.parent.name == _OTHERS else self

    def has_checkpoint(self) -> bool:
        """Whether training has left anything here; a run that was refused before has not."""
        return self.best_checkpoint.is_file() or self.last_checkpoint.is_file()

    def is_in_use(self) -> bool | None:
        """Whether a process trains here; None where that cannot be seen. Nothing is written."""
        if not self.lock.exists():
            return False
        try:
            with FileLock(self.lock, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:
            return None

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest, empty where there is none yet or it is damaged."""
        return _readable_json(self.manifest)

    def read_config(self) -> Mapping[str, Any]:
        """Return the settings in config.yaml, as the version that wrote it knew them.

        Raises:
            ConfigError: the file is damaged.
        """
        path = self.config
        try:
            recorded = yaml.safe_load(path.read_bytes().decode("utf-8-sig"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} cannot be read: {one_line(error)}") from error
        if not isinstance(recorded, Mapping):
            raise ConfigError(f"{path} must hold the run's settings, but is empty or damaged.")
        return recorded

    def figures(self, split: str) -> dict[str, Any]:
        """Return the figures of a split in metrics.json, none where there is no file.

        Raises:
            DataError: the file is damaged.
        """
        metrics = _read_json(self.metrics)
        return {key: value for key, value in metrics.items() if key.startswith(f"{split}/")}

    def read_evaluations(self) -> list[dict[str, Any]]:
        """Return the lines of evaluations.jsonl, without those that are damaged."""
        return list(readable_lines(self.evaluations)) if self.evaluations.is_file() else []

    def replace_mlflow_run(self, old: str, new: str) -> None:
        """Replace an MLflow run in evaluations.jsonl, and leave all else as it is.

        The file is read again for it, because another evaluation may have been recorded meanwhile.
        """
        write_bytes(
            self.evaluations, self.evaluations.read_bytes().replace(old.encode(), new.encode())
        )

    def record_status(self, status: str, **details: str) -> None:
        """Record in the manifest, if there is one, how the run ended; warn if that is not possible.

        Args:
            status: failed, interrupted or stopped.
            details: further entries.
        """
        manifest = self.read_manifest()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            if manifest:
                ended = {"status": status, "updated_at": now, **details}
                write_json(self.manifest, {**manifest, **ended})
        except StorageError as error:
            logger.warning("The manifest does not say that the run has %s: %s", status, error)

    def add_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Put `metrics` into metrics.json, replacing all figures of the same splits."""
        splits = {key.split("/")[0] for key in metrics}
        kept = {
            key: value
            for key, value in _readable_json(self.metrics).items()
            if key.split("/")[0] not in splits
        }
        write_json(self.metrics, {**kept, **metrics})

    def predictions_of(self, split: str, *, system: str | None = None) -> Path:
        """Return where the predictions of a split are: the model's, or those of `baseline_<name>`."""
        return self.path / "predictions" / f"{'.'.join(filter(None, (split, system)))}.jsonl"

    def trec_files(self, split: str) -> tuple[Path, Path]:
        """Return where the rankings of a split are as a TREC run, and its labels as qrels."""
        folder = self.path / "predictions"
        return folder / f"{split}.run", folder / f"{split}.qrels"

    def read_predictions(self, split: str, *, system: str | None = None) -> list[dict[str, Any]]:
        """Return the lines of the file of `predictions_of`.

        Raises:
            DataError: it is not there, or damaged.
        """
        path = self.predictions_of(split, system=system)
        try:
            with path.open(encoding="utf-8") as file:
                return [json.loads(line) for line in file]
        except FileNotFoundError:
            raise DataError(f"{path} is not there.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(
                f"{path} is damaged ({type(error).__name__}): evaluate that run on {split} again."
            ) from error

    def write_predictions(
        self, split: str, records: Iterable[Mapping[str, Any]], *, system: str | None = None
    ) -> Path:
        """Write the file of `predictions_of` and return its path."""
        path = self.predictions_of(split, system=system)
        make_folder(path.parent)
        write_text(path, "".join(json.dumps(record) + "\n" for record in records))
        return path

    def record_evaluation(self, split: str, **facts: object) -> int:
        """Record that `split` is evaluated now. Return how often this run's has been, on the same data.

        Evaluations of other weights of the run, as while it trains, and with other settings count too.

        Args:
            split: train, val, test or all.
            facts: further entries of the record; `weights_sha256` and `data` among them.

        Raises:
            StorageError: it cannot be recorded, so the split must not be evaluated.
        """
        line = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "split": split,
            **facts,
        }
        make_folder(self.path)
        _append_line(self.evaluations, json.dumps(line))
        return self.n_evaluations(split, facts.get("data"))

    def n_evaluations(self, split: str, data: object = None) -> int:
        """Return how often the run's models have been evaluated on a split.

        Args:
            split: train, val or test.
            data: fingerprints of the data; None counts those on any.
        """
        run = self.of_training.path
        lines = [
            line
            for folder in (run, *run.glob(f"{_OTHERS}/*"))
            for path in (folder / self.old_evaluations.name, folder / self.evaluations.name)
            if path.is_file()
            for line in readable_lines(path)
        ]
        # Lines of earlier versions do not say which data.
        return sum(
            line.get("split") == split and data in (None, line.get("data", data)) for line in lines
        )


def directory_of(checkpoint: Path) -> RunDirectory:
    """Return the directory of the run that a checkpoint lies in; one that lies alone is in its own."""
    folder = checkpoint.resolve().parent
    run = RunDirectory(folder.parent)
    return run if run.config.is_file() else RunDirectory(folder)


@contextmanager
def open_run_directory(config: TrainConfig) -> Iterator[RunDirectory]:
    """Make or reopen the run's directory and hold its lock.

    A directory that is made here is removed again if the run fails before it has written its manifest,
    which it does when all checks have passed. Parts of files that a killed process left are removed.

    Raises:
        ConfigError: another process trains there, a run is there already, or the run to be resumed
            was made with another configuration.
        StorageError: the directory cannot be made or written.
    """
    directory = RunDirectory(_choose(config))
    is_new = not directory.path.exists()
    made = make_folder(directory.checkpoints)
    lock = FileLock(directory.lock, timeout=_LOCK_SECONDS)
    try:
        with storing(directory.path):
            _acquire(lock, directory.path)
    except StorageError:
        remove_empty(made)
        raise
    try:
        sweep(directory.checkpoints, in_use_by_others=False)
        for folder in (directory.path, directory.path / "predictions", Path(config.output_dir)):
            sweep(folder)
        _check_free_or_resumable(directory, config)
        write_text(directory.config, to_yaml(config))
        yield directory
    finally:
        if is_new and not directory.manifest.exists():
            shutil.rmtree(directory.path, ignore_errors=True)
            remove_empty(made)
        lock.release()


def output_dir_of(run: Path, task: str) -> Path:
    """Return the `output_dir` that a run lies in: `<output_dir>/<task>/[<folder>/]<run>`."""
    run = run.resolve()
    return next((path.parent for path in run.parents if path.name == task), run.parents[1])


def checkpoint_file(path: Path) -> Path:
    """Return the best checkpoint of a run's directory; a file is one itself."""
    return RunDirectory(path).best_checkpoint if path.is_dir() else path


def _acquire(lock: FileLock, path: Path) -> None:
    try:
        lock.acquire()
    except Timeout:  # an OSError, but no refusal of the disk's
        raise RunInUseError(
            f"Another process is training in {path}. Wait for it, stop it, or choose another `run_name`."
        ) from None


def point_to_latest(output_dir: Path, directory: RunDirectory) -> None:
    """Let `<output_dir>/checkpoints` lead to this run's checkpoints."""
    link = output_dir / "checkpoints"
    if link.exists() and not link.is_symlink():
        logger.warning("%s is not a link, so it is left as it is.", link)
        return
    temporary = temporary_beside(link)
    try:
        temporary.symlink_to(os.path.relpath(directory.checkpoints, output_dir))
        temporary.replace(link)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # Windows needs a privilege for links; the run itself is whole without.
        logger.warning("%s could not be made to lead to the latest checkpoints: %s", link, error)


def drop_lost_link(output_dir: Path) -> None:
    """Remove `<output_dir>/checkpoints` where the checkpoints that it leads to have been deleted."""
    link = output_dir / "checkpoints"
    with suppress(OSError):
        if link.is_symlink() and not link.exists():
            link.unlink()


def _choose(config: TrainConfig) -> Path:
    runs = Path(config.output_dir) / config.task.name
    if config.resume not in (None, "auto"):
        return _run_of(Path(config.resume))
    if config.run_name is None:
        unfinished = _unfinished(runs, config) if config.resume == "auto" else None
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        return unfinished or runs / f"{stamp}-seed{config.seed}-{secrets.token_hex(2)}"
    return runs / config.run_name


def _run_of(path: Path) -> Path:
    """Accept a run directory or a checkpoint in it."""
    if path.is_file() and path.name != LAST:
        raise ConfigError(
            f"`resume` must be auto, a run's directory or its {LAST}, but is {path} instead: only "
            "that checkpoint holds the optimizer's state."
        )
    run = path.resolve().parent.parent if path.is_file() else path
    if not RunDirectory(run).config.is_file():
        raise ConfigError(
            f"`resume` must be auto or the directory of a run, but {path} holds no config.yaml."
        )
    return run


def _unfinished(runs: Path, config: TrainConfig) -> Path | None:
    """The latest run of this very configuration that has not finished.

    Says why a new run starts, if there is none.
    """
    found: list[tuple[float, Path, list[str]]] = []
    for path in runs.glob("*/config.yaml"):
        directory = RunDirectory(path.parent)
        try:
            if _read_json(directory.manifest).get("status") != "finished":
                changes = _differences(directory, config)
                found.append((path.stat().st_mtime, path.parent, changes))
        except (ConfigError, DataError, OSError) as error:
            logger.warning("resume=auto passes over a run: %s", error)
    same = [(time, path) for time, path, changes in found if not changes]
    if same:
        return max(same)[1]
    if found:
        _, path, changes = max(found)
        logger.warning(
            faults_message(
                f"resume=auto starts a new run. The latest unfinished one, {path}, has other settings:",
                changes,
            )
        )
    else:
        logger.info("resume=auto starts a new run: there is no unfinished one in %s.", runs)
    return None


def _check_free_or_resumable(directory: RunDirectory, config: TrainConfig) -> None:
    """Called under the lock, so that no run can appear in between."""
    if not directory.config.exists():
        return
    if config.resume is None and directory.has_checkpoint():
        raise ConfigError(
            f"There is a run in {directory.path} already. Go on with it by `resume=auto`, or choose "
            "another `run_name`."
        )
    if not directory.has_checkpoint():
        _forget_refused_run(directory, config)
        return
    changes = _differences(directory, config)
    if changes:
        raise ConfigError(
            faults_message(
                f"The run in {directory.path} cannot go on with another configuration:", changes
            )
        )


def _forget_refused_run(directory: RunDirectory, config: TrainConfig) -> None:
    """Let a run whose settings have been mended since be a new one, in the tracker too."""
    try:
        changes = _differences(directory, config)
    except ConfigError as error:
        changes = [str(error)]
    if changes:
        logger.info(
            faults_message(f"The run in {directory.path} had not begun; it starts anew:", changes)
        )
        with storing(directory.manifest):
            directory.manifest.unlink(missing_ok=True)


def _differences(directory: RunDirectory, config: TrainConfig) -> list[str]:
    """Name the settings of a run that differ.

    Raises:
        ConfigError: its config.yaml is damaged.
    """
    recorded = directory.read_config()
    try:
        return differences(recorded, config)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{directory.config} cannot be read: {one_line(error)}") from error


def check_same_settings(
    recorded: Mapping[str, Any], now: Mapping[str, Any], *, config: TrainConfig, headline: str
) -> None:
    """Refuse to go on with what was begun with other settings.

    Args:
        recorded: what was begun, with its `config` as plain data.
        now: what must be as recorded, besides `config`.
        config: of today.
        headline: says what was begun, and what to do.

    Raises:
        ConfigError: naming every difference.
    """
    changes = [
        f"`{key}` was {recorded.get(key)!r}, but is {value!r} now"
        for key, value in now.items()
        if recorded.get(key) != value
    ]
    changes += differences(recorded["config"], config)
    if changes:
        raise ConfigError(faults_message(headline, changes))


def differences(recorded: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """Name the settings of `changed_settings`, with both values."""
    return [
        f"`{key}` was {before!r}, but is {now!r} now"
        for key, (before, now) in changed_settings(recorded, config).items()
    ]


def changed_settings(
    recorded: Mapping[str, Any], config: TrainConfig
) -> dict[str, tuple[object, object]]:
    """Return the settings, of those that a result depends on, in which `config` is not `recorded`.

    A setting that is newer than the record had its default.
    """
    recorded = as_of_today(recorded)
    with suppress(ConfigError):  # not valid any more: compared as it is
        recorded = yaml.safe_load(to_yaml(validate_train_config(recorded)))
    before = dict(_leaves(recorded))
    now = deciding_settings(config)
    unused = {"data.sentences"} if config.data.unit == "post" else set()
    return {
        key: (before.get(key), now.get(key))
        for key in sorted((before.keys() | now.keys()) - unused)
        if before.get(key) != now.get(key)
    }


def deciding_settings(config: TrainConfig) -> dict[str, object]:
    """Return the settings that a result depends on, by dotted keys."""
    return dict(_leaves(yaml.safe_load(to_yaml(config))))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if dotted in _FREE_KEYS:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{dotted}.")
        else:
            yield dotted, value


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, empty where there is no file.

    Raises:
        DataError: it is damaged.
    """
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold a JSON object.")
    return content


def _readable_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, empty where there is no file or it is damaged."""
    try:
        return _read_json(path)
    except DataError as error:
        logger.warning("It is written anew, as it is damaged: %s", error)
        return {}


def readable_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file, without the lines that are damaged."""
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            yield content
        elif line.strip():
            logger.warning("%s, line %d: skipped, as it is damaged.", path, number)


def _append_line(path: Path, line: str) -> None:
    """Append a line as a whole or not at all, also after half a line."""
    with storing(path), path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        begin = b"" if file.read(1) in (b"", b"\n") else b"\n"
        content = begin + line.encode() + b"\n"
        try:
            # What does not fit any more is refused, with the reason, when it is written again.
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(size)
            raise
