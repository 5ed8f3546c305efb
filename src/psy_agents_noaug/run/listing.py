"""What `psy-agents runs` lists: the runs below a folder, from their files. Nothing is written.

There may be thousands: a run costs its manifest, and only one that is not finished or was evaluated on
test costs more. torch is not imported.
"""

import csv
import functools
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, Literal, get_args

from psy_agents_noaug.config.schema import Section
from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.metrics.tables import format_value, render_table
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.tasks.registry import settings_model
from psy_agents_noaug.utils.files import read_json

Kind = Literal["train", "search", "cv", "eval"]
Status = Literal[
    "running", "finished", "interrupted", "stopped", "failed", "killed", "evaluated", "damaged"
]
# Folders without runs, which may hold very many files.
_NO_RUNS = {"checkpoints", "predictions", "mlruns", "mlartifacts", "figures", "tables"}
_OF_A_RUN = {"config.yaml", "manifest.json", "metrics.json", "evaluations.jsonl", "history.csv"}
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
_MAX_COMMANDS = 10


class RunsConfig(Section):
    """Settings of `psy-agents runs`.

    Args:
        output_dir: the folder whose runs are listed, also those in folders below.
        status: only runs of this status.
        data: only runs on the data of this name.
        kind: only runs of this kind: of `train`, of a search, of cross-validation, or evaluations of
            other weights, data or settings than a run's own.
    """

    output_dir: str = "outputs"
    status: Status | None = None
    data: str | None = None
    kind: Kind | None = None


@dataclass(frozen=True)
class RunFacts:
    """A run, as its files describe it. None: not known, or there is none.

    Args:
        directory: of the run.
        kind: what made it.
        status: that of the manifest; `killed`: it says running, but no process does.
        task: its name.
        data: the name of its data.
        created_at: when it began, ISO 8601.
        monitor: `training.monitor`.
        best_value: of the monitor, on val.
        split: test, if the run has judged it; of an evaluation the last one.
        headline: key of the task's main figure.
        figure: its value on that split.
        n_test: how often test was evaluated, on any data.
        resume: the command that goes on with it.
        damage: what is wrong with its files.
    """

    directory: str
    kind: Kind = "train"
    status: Status = "damaged"
    task: str | None = None
    data: str | None = None
    created_at: str | None = None
    monitor: str | None = None
    best_value: float | None = None
    split: str | None = None
    headline: str | None = None
    figure: float | None = None
    n_test: int = 0
    resume: str | None = None
    damage: list[str] = field(default_factory=list)


def runs(config: RunsConfig, *, task: str | None, as_json: bool) -> str:
    """Return the runs below a folder as a table, the newest first.

    Args:
        config: the folder, and what filters.
        task: only runs of this task; None: of all.
        as_json: return an array of objects, with the fields of `RunFacts`.

    Raises:
        ConfigError: there is no such folder.
    """
    folder = Path(config.output_dir)
    if not folder.is_dir():
        raise ConfigError(f"`output_dir` must be a folder with runs, but {folder} is none.")
    wanted = {**config.model_dump(exclude={"output_dir"}), "task": task}
    found = sorted(
        (
            facts
            for facts in map(facts_of, run_folders(folder))
            if all(value in (None, getattr(facts, key)) for key, value in wanted.items())
        ),
        key=lambda facts: (facts.created_at or "", facts.directory),
        reverse=True,
    )
    if as_json:
        return json.dumps([asdict(facts) for facts in found], indent=2)
    return _as_text(found, folder) if found else f"There is no such run in {folder}."


def run_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs and of their evaluations; links are not followed."""
    for place, names, files in os.walk(folder):
        names[:] = [name for name in names if name not in _NO_RUNS]
        if not _OF_A_RUN.isdisjoint(files):
            yield Path(place)


def facts_of(path: Path) -> RunFacts:
    """Read what the files of a run, or of an evaluation of other weights or data, say of it."""
    directory = RunDirectory(path)
    if path.parent.name == directory.other_evaluations.name:
        return _evaluation(directory)
    damage: list[str] = []
    manifest = manifest_of(directory, damage)
    known: dict[str, Any] = {}
    if manifest:
        status = manifest.get("status", "finished")
        if status == "running" and directory.is_in_use() is False:
            status = "killed"
        if status not in get_args(Status):
            damage.append(f"{directory.manifest.name}: the status {status!r} is not known")
        monitor = manifest.get("monitor") or _recorded_monitor(directory)
        data = manifest.get("data")
        known = {
            "kind": kind_of(manifest.get("command")),
            "status": status,
            "task": manifest.get("task"),
            "data": data.get("name") if isinstance(data, Mapping) else None,
            "created_at": manifest.get("created_at"),
            "monitor": monitor,
            "best_value": _best_value(directory, manifest, monitor, damage),
            "resume": resume_command(directory, manifest, status=status),
        }
    elif directory.is_in_use():
        known = {"status": "running", "task": path.parent.name}
    elif not damage:
        damage.append(f"there is no {directory.manifest.name}: it had not begun, or lost the file")
    n_test = directory.n_evaluations("test")
    facts = RunFacts(str(path), damage=damage, n_test=n_test, **known)
    facts = _judged(facts, directory, ["test"] if n_test else [])
    return replace(facts, status="damaged") if damage else facts


def kind_of(command: object) -> Kind:
    """Return what made a run, from the command line in its manifest."""
    verb, _ = _program(command)
    kinds: dict[str, Kind] = {"tune": "search", "run_hpo_stage": "search", "cv": "cv"}
    return kinds.get(verb, "train")


def resume_command(
    directory: RunDirectory, manifest: Mapping[str, Any], *, status: str | None
) -> str | None:
    """Return the command that goes on with a run; None if it cannot, or that is not known.

    Args:
        directory: of the run.
        manifest: of the run; it has the command line that began it.
        status: see `RunFacts`.
    """
    if status in ("finished", "running") or not directory.last_checkpoint.is_file():
        return None
    verb, start = _program(manifest.get("command"))
    if not start:
        return None
    words = manifest["command"][1:]
    is_training = verb in ("train", "train-best", "adapt") or verb.startswith("train_")
    # The command of several trainings goes on by itself.
    if is_training and not any(word.startswith(("seeds=", "refit=")) for word in words):
        words = [word for word in words if not word.startswith(("resume=", "run_name="))]
        words.append(f"resume={directory.path}")
    return shlex.join([*start, *words])


def _program(command: object) -> tuple[str, list[str]]:
    """Return the verb, or the name of the script, and how it is started; nothing of other programs."""
    if not (isinstance(command, list) and command and all(isinstance(w, str) for w in command)):
        return "", []
    program = PurePath(command[0])
    if program.parent.name == "scripts" and program.suffix == ".py":
        return program.stem, ["python", command[0]]
    verb = command[1] if len(command) > 1 else ""
    if program.stem == "psy-agents":
        return verb, ["psy-agents"]
    if program.name == "__main__.py" and program.parent.name == "psy_agents_noaug":
        return verb, ["python", "-m", "psy_agents_noaug"]
    return "", []


def manifest_of(directory: RunDirectory, damage: list[str]) -> dict[str, Any]:
    """Return the manifest, empty where there is none or it is damaged, which is added to `damage`."""
    if not directory.manifest.exists():
        return {}
    try:
        found = read_json(directory.manifest)
    except DataError as error:
        damage.append(str(error))
        return {}
    if not isinstance(found, dict):
        damage.append(f"{directory.manifest} must hold a JSON object")
        return {}
    return found


def _recorded_monitor(directory: RunDirectory) -> str | None:
    """Return the monitor of a run of 0.2.0 or earlier. Parsing YAML would take ten times as long."""
    try:
        found = re.search(rb"^  monitor: (\S+)$", directory.config.read_bytes(), flags=re.M)
    except OSError:
        return None
    return found[1].decode(errors="replace") if found else None


def _best_value(
    directory: RunDirectory, manifest: Mapping[str, Any], monitor: str | None, damage: list[str]
) -> float | None:
    if monitor is None:
        return None
    if "best_value" in manifest:
        value = manifest["best_value"]
        return value if isinstance(value, int | float) else None
    if manifest.get("status") == "finished":
        return _figure(directory, monitor, damage)
    best = {"max": max, "min": min}.get(str(manifest.get("monitor_mode")))
    if best is None or not directory.history.is_file():
        return None
    try:
        with directory.history.open(encoding="utf-8", newline="") as file:
            values = [float(row[monitor]) for row in csv.DictReader(file) if row[monitor]]
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        damage.append(f"{directory.history} is damaged ({type(error).__name__})")
        return None
    return best(values) if values else None


def _figure(directory: RunDirectory, key: str, damage: list[str]) -> float | None:
    """Return a figure of metrics.json, which has thousands; parsing them takes milliseconds."""
    try:
        content = directory.metrics.read_bytes().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        damage.append(f"{directory.metrics} cannot be read ({error.strerror})")
        return None
    _, _, rest = content.partition(f'"{key}": '.encode())
    found = re.match(rb"-?[\d.eE+-]+", rest)
    if not (content.startswith(b"{") and content.endswith(b"}")):
        damage.append(f"{directory.metrics}: it must be JSON, but is cut off or damaged")
        return None
    return float(found[0]) if found else None


def _judged(facts: RunFacts, directory: RunDirectory, splits: Sequence[str]) -> RunFacts:
    """Add the main figure on the last of `splits` that was evaluated."""
    split = splits[-1] if splits else None
    headline = next(iter(headlines(facts.task)), None)
    figure = None
    if split and headline:
        figure = _figure(directory, f"{split}/{headline}", facts.damage)
    return replace(facts, split=split, headline=headline, figure=figure)


@functools.cache
def headlines(task: object) -> tuple[str, ...]:
    """Return the keys of a task's main figures; none of a task whose package is not installed here."""
    try:
        return settings_model(str(task)).headline_metrics
    except ConfigError:
        return ()


def _evaluation(directory: RunDirectory) -> RunFacts:
    """Return the facts of an evaluation of other weights, data or settings than its run's own."""
    run = RunDirectory(directory.path.parent.parent)
    lines = directory.read_evaluations()
    task = manifest_of(run, []).get("task") or run.path.parent.name
    facts = RunFacts(
        str(directory.path),
        kind="eval",
        status="evaluated",
        task=task,
        data=directory.path.name.rsplit("-", 2)[0],
        created_at=str(lines[0]["at"]) if lines and "at" in lines[0] else None,
    )
    splits = [str(line.get("split")) for line in lines]
    facts = replace(facts, n_test=splits.count("test"))
    return _judged(facts, directory, splits)


# -------------------------------------------------------------------------------------------- table


def age(moment: str | None, *, now: datetime | None = None) -> str:
    """Spell how long ago a moment in ISO 8601 was, in its largest unit: `3 h`; `n/a` without one."""
    try:
        began = datetime.fromisoformat(str(moment))
        seconds = ((now or datetime.now(UTC)) - began).total_seconds()
    except (ValueError, TypeError):
        return "n/a"
    name, length = next(unit for unit in _UNITS if seconds >= unit[1] or unit[1] == 1)
    return f"{max(0, int(seconds // length))} {name}"


def _as_text(found: Sequence[RunFacts], folder: Path) -> str:
    rows = [
        [
            "run",
            "kind",
            "task",
            "data",
            "status",
            "best on val",
            "main figure",
            "looks at test",
            "age",
        ]
    ]
    for facts in found:
        rows.append(
            [
                os.path.relpath(facts.directory, folder),
                facts.kind,
                facts.task or "n/a",
                facts.data or "n/a",
                facts.status,
                _named((facts.monitor or "").removeprefix("val/"), facts.best_value),
                _named(f"{facts.split} {facts.headline}", facts.figure),
                str(facts.n_test),
                age(facts.created_at),
            ]
        )
    lines = [render_table(rows, left=7)]
    if damaged := [f"  {facts.directory}: {what}" for facts in found for what in facts.damage]:
        lines += ["", "Damaged:", *damaged]
    if commands := list(dict.fromkeys(facts.resume for facts in found if facts.resume)):
        lines += ["", "To go on with what was not finished:"]
        lines += [f"  {command}" for command in commands[:_MAX_COMMANDS]]
        if more := len(commands) - _MAX_COMMANDS:
            lines += [f"  and {more:,} more (--json lists all)"] * (more > 0)
    return "\n".join(lines)


def _named(name: str | None, value: float | None) -> str:
    return f"{name} {format_value(float(value))}" if name and value is not None else "-"
