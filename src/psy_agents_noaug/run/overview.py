"""What `psy-agents info RUN` reports: a run on a page, from its files. torch is not imported."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from psy_agents_noaug.config.adaptation import adapt_settings
from psy_agents_noaug.config.loading import (
    as_of_today,
    compose_config,
    flat,
    group_choices,
    lay_over,
)
from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.metrics.tables import format_value, render_table
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.run.listing import RunFacts, age, facts_of, headlines, manifest_of
from psy_agents_noaug.run.refits import PLAN, describe, refit_of
from psy_agents_noaug.utils.files import read_json

_SPLITS = ("train", "val", "test", "all")
_FLAGS = {
    "annotated_sentences_only": "ordinary sentences are not judged, annotated ones alone",
    "seen_posts_unchecked": "it is not checked whether training has seen these posts",
    "n_near_duplicates_of_train": "some posts are near duplicates of training's",
    "n_posts_by_authors_of_train": "some posts have authors of training's posts",
}


def run_report(path: Path, *, as_json: bool) -> str:
    """Return everything that the files of a run say, on a page or as JSON.

    Raises:
        ConfigError: the folder holds no run.
    """
    facts = facts_of(path)
    directory = RunDirectory(path)
    known = (directory.config, directory.manifest, directory.metrics, directory.evaluations)
    if not any(file.is_file() for file in known):
        raise ConfigError(f"{path} is not the directory of a run: it has no {known[0].name}.")
    manifest = manifest_of(directory, [])
    report: dict[str, Any] = {
        "run": asdict(facts),
        "manifest": manifest,
        "settings": _changed_settings(directory, facts),
        "figures": _figures(directory, facts),
        "evaluations": {
            split: count for split in _SPLITS if (count := directory.n_evaluations(split))
        },
        "files": {
            file.relative_to(path).as_posix(): file.stat().st_size
            for file in sorted(path.rglob("*"))
            if file.is_file()
        },
        "commands": _commands(directory, facts),
    }
    report["warnings"] = _warnings(directory, facts, report)
    return json.dumps(report, indent=2) if as_json else _as_text(facts, report)


def _changed_settings(directory: RunDirectory, facts: RunFacts) -> dict[str, list[Any]]:
    """Return the settings that are not the defaults of their task and data: value, default."""
    try:
        recorded = as_of_today(directory.read_config())
        name = facts.data if facts.data in group_choices()["data"] else None
        chosen = [f"data={name}"] if name else []
        own = flat(recorded)
        if facts.task == "adapt":
            composed = adapt_settings(chosen)
        else:
            composed = compose_config("config", chosen, task=facts.task)
        # What must be given has no default.
        given = {key: own.get(key) for key, value in flat(composed).items() if value == "???"}
        defaults = flat(lay_over(composed, given).model_dump(mode="json"))
    except ConfigError as error:
        if directory.config.exists():
            facts.damage.append(str(error))
        return {}
    return {
        key: [own.get(key), None if key in given else defaults.get(key)]
        for key in sorted(own.keys() | defaults.keys())
        if key in given or own.get(key) != defaults.get(key)
    }


def _figures(directory: RunDirectory, facts: RunFacts) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the main figures with their intervals, by split and system."""
    try:
        metrics = read_json(directory.metrics) if directory.metrics.exists() else {}
        if not isinstance(metrics, dict):
            raise DataError(f"{directory.metrics}: must hold a JSON object.")
    except DataError as error:
        facts.damage.append(str(error))
        return {}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    main = headlines(facts.task)
    for key, value in metrics.items():
        split, *system, name = key.split("/")
        of_model = not system and (name in _FLAGS or name.endswith("_undefined"))
        is_main = name.removesuffix("_ci_low").removesuffix("_ci_high") in main
        if (is_main and (not system or system[0].startswith("baseline_")) and len(system) < 2) or (
            of_model
        ):
            shown = system[0].replace("baseline_", "baseline ") if system else "model"
            found.setdefault(split, {}).setdefault(shown, {})[name] = value
    return found


def _commands(directory: RunDirectory, facts: RunFacts) -> dict[str, str]:
    commands = {"go on": facts.resume} if facts.resume else {}
    if directory.best_checkpoint.is_file():
        run = directory.path
        commands["evaluate"] = f"psy-agents eval checkpoint={run} split=test"
        commands["predict"] = (
            f"psy-agents predict checkpoint={run} data.posts=FILE output=predictions.jsonl"
        )
        commands["export"] = f"psy-agents export checkpoint={run} format=huggingface"
    return commands


def _warnings(directory: RunDirectory, facts: RunFacts, report: Mapping[str, Any]) -> list[str]:
    manifest = report["manifest"]
    found = list(facts.damage)
    if facts.status in ("killed", "failed", "interrupted", "stopped"):
        reason = f" ({manifest['error']})" if "error" in manifest else ""
        found.append(f"the run has not finished: {facts.status}{reason}")
    if facts.kind != "eval" and facts.status == "finished" and not report["commands"]:
        found.append("it has no checkpoint: train with the same settings to have one")
    if facts.status == "finished" and facts.best_value is None and not refit_of(manifest):
        found.append(
            f"{facts.monitor} was undefined in every evaluation: the last weights are kept"
        )
    if skipped := manifest.get("skipped_updates"):
        found.append(f"{skipped} updates were skipped, as fp16 gradients overflowed")
    if (manifest.get("environment") or {}).get("git", {}).get("dirty"):
        found.append("the code had changes that are in no commit")
    if facts.n_test > 1:
        found.append(
            f"test was evaluated {facts.n_test} times: figures that were chosen among them are too good"
        )
    for split, systems in report["figures"].items():
        own = systems.get("model", {})
        found += [f"{split}: {text}" for key, text in _FLAGS.items() if own.get(key)]
        found += [
            f"{split}: {key.removesuffix('_undefined')} is undefined: {reason}"
            for key, reason in own.items()
            if key.endswith("_undefined") and "_ci_" not in key
        ]
    return found


def _as_text(facts: RunFacts, report: Mapping[str, Any]) -> str:
    manifest = report["manifest"]
    data = manifest.get("data") or {}
    packages = (manifest.get("environment") or {}).get("packages") or {}
    git = (manifest.get("environment") or {}).get("git") or {}
    refit = refit_of(manifest)
    best = f", best at {manifest['best_step']}" if manifest.get("best_step") else ""
    rows = {
        "run": facts.directory,
        "task": f"{facts.task}, begun by {facts.kind}",
        "status": f"{facts.status}, began {facts.created_at} ({age(facts.created_at)} ago)",
        "training": f"{manifest['steps']} updates{best}" if "steps" in manifest else None,
        "monitor": f"{facts.monitor} {format_value(facts.best_value)}"
        if facts.monitor and not refit
        else None,
        "refit": describe(refit) if refit else None,
        "  plan": refit.get(PLAN) if refit else None,
        "weights": manifest.get("weights_sha256"),
        "data": data.get("name") or facts.data,
        "  corpus": data.get("corpus"),
        "  splits": data.get("splits"),
        "  divided": data.get("splits_origin"),
        "versions": ", ".join(
            f"{name} {packages[name]}"
            for name in ("psy-agents-noaug", "torch", "transformers")
            if packages.get(name)
        ),
        "git commit": git.get("commit"),
        "evaluated": ", ".join(f"{split} {n} x" for split, n in report["evaluations"].items())
        or ("no split" if refit else "no split besides val in training"),
    }
    blocks = [[f"{name:12}{value}" for name, value in rows.items() if value]]
    if warnings := report["warnings"]:
        blocks.insert(0, ["warnings:", *(f"  {line}" for line in warnings)])
    if settings := report["settings"]:
        lines = [f"  {key}={own} (default {default})" for key, (own, default) in settings.items()]
        blocks.append(["settings that are not the defaults:", *lines])
    for split, systems in report["figures"].items():
        blocks.append([_figures_table(split, systems, headlines(facts.task))])
    files = [[f"  {name}", decimal(size)] for name, size in report["files"].items()]
    blocks.append(["files:", render_table(files, left=1)])
    if commands := report["commands"]:
        width = max(map(len, commands))
        blocks.append(
            ["commands:", *(f"  {name:{width}}  {line}" for name, line in commands.items())]
        )
    return "\n\n".join("\n".join(block) for block in blocks)


def _figures_table(
    split: str, systems: Mapping[str, Mapping[str, Any]], main: tuple[str, ...]
) -> str:
    """Return a row for the model and each baseline; intervals are of 95 %."""
    names = [name for name in main if any(name in figures for figures in systems.values())]
    rows = [[split, *names]]
    for system, figures in systems.items():
        cells = []
        for name in names:
            low, high = (format_value(figures.get(f"{name}_ci_{end}")) for end in ("low", "high"))
            interval = f" [{low}, {high}]" if f"{name}_ci_low" in figures else ""
            cells.append(f"{format_value(figures[name])}{interval}" if name in figures else "-")
        rows.append([system, *cells])
    return render_table(rows, left=1)
