"""The command `psy-agents VERB [KEY=VALUE | GROUP=CHOICE]...`, and what the files of `scripts/` call.

A verb is a function and an entry of `VERBS`. How a command ends is in `process`.

Nothing heavy is imported at the top: `--help` and shell completion must answer at once, and a wrong key
must be reported before torch, which takes seconds, is imported.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from psy_agents_noaug import __version__
from psy_agents_noaug.errors import (
    ConfigError,
    did_you_mean,
    faults_message,
    not_one_of,
    similar_names,
)
from psy_agents_noaug.process import guarded
from psy_agents_noaug.tasks.registry import task_names
from psy_agents_noaug.utils.extras import require

if TYPE_CHECKING:
    from psy_agents_noaug.config.series import SeriesVerb
    from psy_agents_noaug.run.evaluate import RunResult

# Of `psy-agents train`, and of every `--help`.
DEFAULT_TASK = "criteria"


@dataclass(frozen=True)
class Command:
    """A command line, taken apart.

    Args:
        task: the value of `task=`, None where it is not given.
        overrides: the settings in Hydra's syntax, without `task=`.
        json: whether `--json` is given.
        words: what a verb that `takes_words` is given besides settings.
    """

    task: str | None = None
    overrides: Sequence[str] = ()
    json: bool = False
    words: Sequence[str] = ()


@dataclass(frozen=True)
class Verb:
    """What `psy-agents` can do.

    Args:
        name: the verb.
        summary: one line for the list of verbs.
        usage: the arguments, as a usage line shows them.
        example: a command line that works.
        run: does it, and returns the text to print.
        compose: returns the settings that it reads, for `--help` and completion; None: it reads none.
        groups: of configurations to choose from; None: all that its settings come from; empty: they come
            from none.
        flags: the flags that it knows besides `--help`.
        takes_words: whether it takes words that are no settings.
        keys: its only settings, where a word with `=` may be no setting; None: any.
    """

    name: str
    summary: str
    usage: str
    example: str
    run: Callable[[Command], str]
    compose: Callable[[Command], dict[str, Any]] | None = None
    groups: tuple[str, ...] | None = None
    flags: tuple[str, ...] = ()
    takes_words: bool = False
    keys: tuple[str, ...] | None = None


# -------------------------------------------------------------------------------------------- verbs


def _trained(verb: "SeriesVerb", command: Command) -> str:
    """Train once, or with several folds or seeds, or on train and val after their cross-validation."""
    from psy_agents_noaug.config.series import load_series_config

    task = command.task or DEFAULT_TASK
    settings, config = load_series_config(verb, task, command.overrides)
    from psy_agents_noaug.report.write import write_report

    if config.refit is not None:
        from psy_agents_noaug.run.series.refit import run_refit

        refitted = run_refit(
            settings, config, overrides=command.overrides, write_report=write_report
        )
        return _summary(refitted) if refitted else ""
    if settings.seeds is None:
        from psy_agents_noaug.run.train import train

        return _summary(train(config, write_report=write_report))
    from psy_agents_noaug.run.series.work import run_series

    result = run_series(
        verb, settings, config, overrides=command.overrides, write_report=write_report
    )
    return _summary(result) if result else ""


def _evaluate(command: Command) -> str:
    from psy_agents_noaug.config.loading import given, load_evaluate_config

    task, checkpoint = command.task, given(command.overrides).get("checkpoint")
    if task is None and checkpoint is not None:
        from psy_agents_noaug.run.evaluate import checkpoint_task

        task = checkpoint_task(checkpoint if isinstance(checkpoint, list) else str(checkpoint))
    task = task or DEFAULT_TASK  # without a checkpoint, whose absence is then reported
    evaluation, explicit = load_evaluate_config(task, command.overrides)
    from psy_agents_noaug.report.write import write_report
    from psy_agents_noaug.run.evaluate import evaluate

    return _summary(
        evaluate(evaluation, task_name=task, explicit=explicit, write_report=write_report)
    )


def _predict(command: Command) -> str:
    from psy_agents_noaug.config.prediction import load_predict_config

    if command.task is not None:
        raise ConfigError("`task` is that of the checkpoint; leave it out.")
    config = load_predict_config(command.overrides)
    from psy_agents_noaug.run.predict import predict

    return predict(config)


def _adapt(command: Command) -> str:
    from psy_agents_noaug.config.adaptation import load_adapt_config

    if command.task is not None:
        raise ConfigError("An adapted encoder serves every task; leave `task` out.")
    config = load_adapt_config(command.overrides)
    from psy_agents_noaug.run.adapt import adapt

    result = adapt(config)
    return f"{_summary(result)}\nencoder, for model.pretrained_model: {result.model}"


def _import(command: Command) -> str:
    from psy_agents_noaug.config.loading import load_import_config

    if len(command.words) != 2 or command.task:
        found = " ".join(command.words) or "nothing"
        raise ConfigError(
            f"`psy-agents import` must be given a tool and its export, but is given {found}: "
            "psy-agents import labelstudio|doccano|brat|inception|spacy FILE."
        )
    config = load_import_config(command.overrides)
    tool, path = command.words
    from psy_agents_noaug.importers.run import import_annotations

    return import_annotations(tool, Path(path), config)


def _merge(command: Command) -> str:
    from psy_agents_noaug.config.loading import given, validate
    from psy_agents_noaug.config.schema import MergeConfig

    if len(command.words) != 1:
        found = " ".join(command.words) or "none"
        raise ConfigError(f"`psy-agents merge` must be given one folder, but is given {found}.")
    config = validate(MergeConfig, {"output": "???", **given(command.overrides)})
    from psy_agents_noaug.run.scale.merge import merge

    return merge(Path(command.words[0]), Path(config.output), check_posts=config.check_posts)


def _compare(command: Command) -> str:
    from psy_agents_noaug.config.loading import given, validate
    from psy_agents_noaug.config.schema import CompareConfig

    if command.task is not None:
        raise ConfigError("`task` is that of the runs; leave it out.")
    config = validate(CompareConfig, given(command.overrides))
    from psy_agents_noaug.comparison.tables import summary
    from psy_agents_noaug.comparison.write import compare_and_write

    output = None if config.output is None else Path(config.output)
    comparison, folder = compare_and_write(command.words, split=config.split, output=output)
    if command.json:
        return (folder / "comparison.json").read_text(encoding="utf-8").rstrip()
    return f"{summary(comparison)}\n\ncomparison: {folder / 'comparison.html'}"


def _export(command: Command) -> str:
    from psy_agents_noaug.config.loading import load_export_config

    settings = load_export_config(command.overrides)
    if settings.format == "labelstudio":
        if command.task is not None:
            raise ConfigError("`task` is that of the predictions; leave it out.")
        from psy_agents_noaug.exports.labelstudio import export_predictions

        return export_predictions(settings)
    from psy_agents_noaug.exports.export import export

    return export(settings, task=command.task).summary


def _tune(command: Command) -> str:
    task = _required_task(command)
    _stage(command, default=None)
    require("optuna", extra="hpo", purpose="`psy-agents tune`")
    from psy_agents_noaug.hpo.stages import run_stage

    return run_stage([f"task={task}", *command.overrides])


def _train_best(command: Command) -> str:
    task = _required_task(command)
    if not any(item.startswith("best_config=") for item in command.overrides):
        raise ConfigError(
            "`best_config` must be given: best_config=outputs/hpo_stage2/best_config.yaml"
        )
    return _trained("train", replace(command, task=task))


def _tracking(command: Command) -> str:
    from psy_agents_noaug.config.loading import given

    settings = given(command.overrides)
    unknown = sorted(settings.keys() - {"tracking.uri"})
    if command.words[:1] != ["sync"] or len(command.words) < 2 or unknown:
        raise ConfigError(
            "`psy-agents tracking` must be followed by sync and the directories of runs, and may have "
            f"`tracking.uri`; it was given {' '.join([*command.words, *unknown]) or 'nothing'} instead."
        )
    from psy_agents_noaug.run.sync import sync_all

    return sync_all([Path(word) for word in command.words[1:]], uri=settings.get("tracking.uri"))


def _data(command: Command) -> str:
    if list(command.words) != ["check"]:
        found = " ".join(command.words) or "nothing"
        raise ConfigError(
            f"`psy-agents data` must be followed by check, but is by {found} instead."
        )
    from psy_agents_noaug.config.data_check import load_data_check_config

    settings, config = load_data_check_config(command.task or DEFAULT_TASK, command.overrides)
    from psy_agents_noaug.report.data_check import check_and_write

    done = check_and_write(config, settings, command.overrides)
    return f"\n{done.summary}\n\npage: {done.page}"


def _report(command: Command) -> str:
    from psy_agents_noaug.config.loading import given, validate
    from psy_agents_noaug.config.schema import ReportConfig

    if not command.words or command.task:
        found = f"task={command.task}" if command.task else "nothing"
        raise ConfigError(
            "`psy-agents report` must be given the directories of runs, or folders in their "
            f"evaluations/, but is given {found} instead."
        )
    config = validate(ReportConfig, given(command.overrides))
    from psy_agents_noaug.report.errors import write_errors_page
    from psy_agents_noaug.report.write import write_report

    pages = []
    for folder in map(Path, command.words):
        pages.append(write_report(folder))
        if config.with_text:
            pages.append(write_errors_page(folder))
    return "\n".join(map(str, pages))


def _trec(command: Command) -> str:
    from psy_agents_noaug.config.loading import given, validate
    from psy_agents_noaug.config.schema import TrecConfig

    config = validate(TrecConfig, given(command.overrides))
    n_files = len(command.words)
    if command.task or n_files not in (1, 2) or (n_files == 1 and config.output is None):
        found = " ".join([*command.words, *command.overrides]) or "nothing"
        raise ConfigError(
            "`psy-agents trec` must be given a run and qrels, two files, or a run and output=FILE, but "
            f"is given {found}."
        )
    from psy_agents_noaug.run.trec import trec

    run, *qrels = map(Path, command.words)
    output = None if config.output is None else Path(config.output)
    return trec(run, qrels[0] if qrels else None, output, as_json=command.json)


def _runs(command: Command) -> str:
    from psy_agents_noaug.config.loading import given, validate
    from psy_agents_noaug.run.listing import RunsConfig, runs

    config = validate(RunsConfig, given(command.overrides))
    return runs(config, task=command.task, as_json=command.json)


def _info(command: Command) -> str:
    if command.overrides or command.task or len(command.words) > 1:
        settings = [*command.words, *command.overrides]
        raise ConfigError(
            f"psy-agents info takes the directory of one run, or nothing, not {' '.join(settings)}."
        )
    if command.words:
        from psy_agents_noaug.run.overview import run_report

        return run_report(Path(command.words[0]), as_json=command.json)
    from psy_agents_noaug.run.system_report import as_text, system_report

    report = system_report()
    return json.dumps(report, indent=2) if command.json else as_text(report)


def _composed(name: str, command: Command) -> dict[str, Any]:
    from psy_agents_noaug.config.loading import compose_config

    return compose_config(name, command.overrides, task=command.task or DEFAULT_TASK)


def _listing_settings(command: Command) -> dict[str, Any]:
    from psy_agents_noaug.config.loading import given
    from psy_agents_noaug.run.listing import RunsConfig

    return {**RunsConfig().model_dump(), **given(command.overrides)}


def _prediction_settings(command: Command) -> dict[str, Any]:
    from psy_agents_noaug.config.prediction import predict_settings

    return predict_settings(command.overrides)


def _adaptation_settings(command: Command) -> dict[str, Any]:
    from psy_agents_noaug.config.adaptation import adapt_settings

    return adapt_settings(command.overrides)


def _import_settings(command: Command) -> dict[str, Any]:
    from psy_agents_noaug.config.loading import compose_config

    return compose_config("import", command.overrides)


def _export_settings(command: Command) -> dict[str, Any]:
    from psy_agents_noaug.config.loading import compose_config

    return compose_config("export", command.overrides)


def _tuning_settings(command: Command) -> dict[str, Any]:
    """Return the settings of a stage, with `hpo.` before their keys, and those of its trainings."""
    from psy_agents_noaug.config.loading import compose_config

    stage = _stage(command, default="stage0_sanity")
    own = [item.removeprefix("hpo.") for item in command.overrides if item.startswith("hpo.")]
    others = [item for item in command.overrides if not item.startswith(("hpo=", "hpo."))]
    settings = compose_config(f"hpo/{stage}", own)
    return {
        **{f"hpo.{key}": value for key, value in settings.items()},
        **_composed("config", replace(command, overrides=others)),
    }


def _stage(command: Command, *, default: str | None) -> str | None:
    """Return the value of `hpo=`, which must be a stage."""
    from psy_agents_noaug.config.loading import group_choices

    given = [item.removeprefix("hpo=") for item in command.overrides if item.startswith("hpo=")]
    stage = given[-1] if given else default
    stages = group_choices()["hpo"]
    if stage not in stages:
        raise ConfigError(not_one_of("hpo", stages, stage))
    return stage


def _summary(result: "RunResult") -> str:
    lines = [f"run directory: {result.directory}"]
    if (page := result.directory / "report.html").is_file():
        lines.append(f"report: {page}")
    return "\n".join(["", result.summary, "", *lines])


def _required_task(command: Command) -> str:
    if command.task is None:
        choices = " or ".join(f"task={name}" for name in task_names())
        raise ConfigError(f"`task` must be given: {choices}.")
    return command.task


VERBS = (
    Verb(
        "train",
        "train a model, or one with each of several seeds, and evaluate it on val",
        usage="[task=TASK] [GROUP=CHOICE | KEY=VALUE]...",
        example="psy-agents train task=evidence data=redsm5 data.dir=DIR training.epochs=3",
        run=partial(_trained, "train"),
        compose=partial(_composed, "train"),
    ),
    Verb(
        "cv",
        "train and evaluate on each of several folds, with one or several seeds, or go on with it",
        usage="[task=TASK] [folds=NUMBER_OR_FILE] [seeds=[1,2,3]] [GROUP=CHOICE | KEY=VALUE]...",
        example="psy-agents cv task=criteria folds=5 seeds=[1,2,3] training.epochs=4",
        run=partial(_trained, "cv"),
        compose=partial(_composed, "cv"),
    ),
    Verb(
        "eval",
        "evaluate a trained model on a split, or on another corpus as a whole (split=all)",
        usage="checkpoint=RUN|FILE|[RUN,...] [split=train|val|test|all] [GROUP=CHOICE | KEY=VALUE]...",
        example="psy-agents eval checkpoint=outputs/checkpoints/best_checkpoint.pt split=val",
        run=_evaluate,
        compose=partial(_composed, "eval"),
    ),
    Verb(
        "predict",
        "predict new posts, which need no annotations",
        usage="checkpoint=RUN|FILE|[RUN,...] data.posts=FILE [output=FILE] [data=CHOICE | KEY=VALUE]...",
        example="psy-agents predict checkpoint=outputs/checkpoints/best_checkpoint.pt "
        "data.posts=FILE output=FILE",
        run=_predict,
        compose=_prediction_settings,
        groups=("data",),
    ),
    Verb(
        "merge",
        "check the predictions of a folder, and merge them into one file",
        usage="FOLDER output=FILE [check_posts=false]",
        example="psy-agents merge scores output=predictions.parquet",
        run=_merge,
        takes_words=True,
    ),
    Verb(
        "compare",
        "compare trained systems on the same posts, by figure and criterion",
        usage="RUN | NAME=RUN,RUN... | baseline:tfidf_lr ... [split=val|test|all] [output=FOLDER] "
        "[--json]",
        example="psy-agents compare small=outputs/criteria/small-s* outputs/criteria/RUN",
        run=_compare,
        flags=("--json",),
        takes_words=True,
        keys=("split", "output"),
    ),
    Verb(
        "trec",
        "score a TREC run, or predictions, by qrels; or write predictions as a TREC run",
        usage="RUN|PREDICTIONS [QRELS] [output=FILE] [--json]",
        example="psy-agents trec predictions/test.run predictions/test.qrels",
        run=_trec,
        flags=("--json",),
        takes_words=True,
        keys=("output",),
    ),
    Verb(
        "export",
        "write a model in another format, with a model card, or predictions for Label Studio",
        usage="checkpoint=RUN_OR_FILE format=huggingface|onnx|bundle [KEY=VALUE]... | "
        "predictions=RUN_OR_FILE format=labelstudio [KEY=VALUE]...",
        example="psy-agents export checkpoint=outputs/criteria/RUN format=onnx quantize=int8",
        run=_export,
        compose=_export_settings,
    ),
    Verb(
        "adapt",
        "continue the pretraining of an encoder on unlabelled posts",
        usage="data.posts=FILE [data=CHOICE data.dir=DIR] [model=CHOICE | KEY=VALUE]...",
        example="psy-agents adapt data.posts=FILE data=redsm5 data.dir=DIR training.epochs=1",
        run=_adapt,
        compose=_adaptation_settings,
        groups=("data", "model", "training", "tracking"),
    ),
    Verb(
        "import",
        "make tables of posts and annotations from the export of an annotation tool",
        usage="labelstudio|doccano|brat|inception|spacy FILE [map=FILE] [output=FOLDER] [KEY=VALUE]...",
        example="psy-agents import labelstudio export.json map=labels.yaml output=corpus",
        run=_import,
        compose=_import_settings,
        groups=(),
        takes_words=True,
    ),
    Verb(
        "tune",
        "search hyperparameters: run one stage, or go on with it",
        usage="hpo=STAGE task=TASK [hpo.KEY=VALUE | GROUP=CHOICE | KEY=VALUE]...",
        example="psy-agents tune hpo=stage1_coarse task=criteria hpo.n_trials=30",
        run=_tune,
        compose=_tuning_settings,
    ),
    Verb(
        "train-best",
        "train with the best configuration of a search",
        usage="task=TASK best_config=FILE [refit=train+val] [GROUP=CHOICE | KEY=VALUE]...",
        example="psy-agents train-best task=criteria best_config=outputs/hpo_stage2/best_config.yaml",
        run=_train_best,
        compose=partial(_composed, "train"),
    ),
    Verb(
        "tracking",
        "bring MLflow up to date with the directories of runs",
        usage="sync RUN... [tracking.uri=URI]",
        example="psy-agents tracking sync outputs/criteria/RUN",
        run=_tracking,
        takes_words=True,
    ),
    Verb(
        "data",
        "check a corpus before training: faults, lengths, evidence, duplicates, what figures will tell",
        usage="check [task=TASK] [GROUP=CHOICE | KEY=VALUE]...",
        example="psy-agents data check data=redsm5 data.dir=DIR",
        run=_data,
        compose=partial(_composed, "data_check"),
        takes_words=True,
    ),
    Verb(
        "report",
        "write the report of a run again, or with its errors beside their posts (with_text=true)",
        usage="RUN... [with_text=true]",
        example="psy-agents report outputs/criteria/RUN",
        run=_report,
        takes_words=True,
    ),
    Verb(
        "runs",
        "list runs: data, status, figures, looks at test, and how to go on with them",
        usage="[output_dir=DIR] [task=TASK] [status=STATUS] [data=NAME] [kind=KIND] [--json]",
        example="psy-agents runs status=killed",
        run=_runs,
        compose=_listing_settings,
        groups=(),
        flags=("--json",),
    ),
    Verb(
        "info",
        "report versions, packages, devices and precisions; or all that a run has left",
        usage="[RUN] [--json]",
        example="psy-agents info --json",
        run=_info,
        flags=("--json",),
        takes_words=True,
    ),
)


# ------------------------------------------------------------------------------------- command line


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        argv: the arguments, the verb first; None: those of this process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser, always_complete_options=False)
    if not arguments:
        sys.stderr.write(f"{_overview()}\n")
        return 2
    return guarded(lambda: _answer(parser, arguments))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"The command line cannot be read: {message}.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="psy-agents", add_help=False, allow_abbrev=False)
    words = parser.add_argument("words", nargs="*")
    words.completer = _completions  # type: ignore[attr-defined]  # where argcomplete looks for it
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser


def _answer(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> str:
    """Do what a command line asks for, and return the text to print."""
    parsed, flags = parser.parse_known_intermixed_args(arguments)
    if parsed.version:
        return f"psy-agents {__version__}"
    if parsed.help and not parsed.words and not flags:
        return _overview()
    verb = _verb(parsed.words[0] if parsed.words else None)
    words = list(arguments)
    words.remove(verb.name)
    _check_syntax(verb, [word for word in words if word not in ("-h", "--help", *verb.flags)])
    given = parsed.words[1:]
    bare = [word for word in given if verb.takes_words and not _is_key(verb, word)]
    command = replace(
        _command([word for word in given if word not in bare]), json=parsed.json, words=bare
    )
    return _help(verb, command) if parsed.help else verb.run(command)


def _is_key(verb: Verb, word: str) -> bool:
    """Return whether a word is a setting of a verb that takes other words too."""
    key, separator, _ = word.partition("=")
    # No key has a slash: such a word is a path.
    return bool(separator) and "/" not in key and (verb.keys is None or key in (*verb.keys, "task"))


def _verb(name: str | None) -> Verb:
    names = [verb.name for verb in VERBS]
    if name in names:
        return VERBS[names.index(name)]
    if name is None or "=" in name:
        problem = "The verb must come first: psy-agents VERB [KEY=VALUE]..."
    else:
        meant = did_you_mean(similar_names(name, names))
        problem = f"`{name}` is not a verb of psy-agents{meant or '.'}"
    raise ConfigError("\n".join([problem, *_verb_lines()]))


def _check_syntax(verb: Verb, words: Sequence[str]) -> None:
    """Refuse all words that are no settings, in one message that says how to write them."""
    if verb.takes_words:
        words = [word for word in words if word.startswith("-")]
    if not words:
        return
    if verb.compose is None:
        raise ConfigError(
            f"psy-agents {verb.name} takes {verb.usage} alone, not {' '.join(words)}."
        )
    from psy_agents_noaug.config.command_line import is_setting, syntax_faults
    from psy_agents_noaug.config.loading import flat

    if all(is_setting(word) for word in words):
        return
    task = _command([word for word in words if word.startswith("task=")]).task
    settings = verb.compose(Command(task))
    faults = syntax_faults(words, keys=list(flat(settings)), groups=_groups(verb, settings))
    raise ConfigError(faults_message("The command line must hold key=value pairs:", faults))


def _command(words: Sequence[str]) -> Command:
    """Take `task=` out of the settings of a command line, and check it."""
    from psy_agents_noaug.config.command_line import take_task

    task, overrides = take_task(words)
    return Command(task, overrides)


# --------------------------------------------------------------------------------------------- help


def _overview() -> str:
    return "\n".join(
        [
            "usage: psy-agents VERB [task=TASK] [GROUP=CHOICE | KEY=VALUE]...",
            "",
            "verbs:",
            *_verb_lines(),
            "",
            "psy-agents VERB --help lists the tasks, the groups, and all keys with their values.",
            f"task=TASK picks the task; without it train takes {DEFAULT_TASK}, eval the checkpoint's.",
            "psy-agents --version prints the version.",
            "",
            "examples:",
            *(f"  {verb.example}" for verb in VERBS),
            "",
            "completion of verbs, groups and keys, in bash and zsh:",
            '  eval "$(register-python-argcomplete psy-agents)"',
        ]
    )


def _verb_lines() -> list[str]:
    width = max(len(verb.name) for verb in VERBS)
    return [f"  {verb.name:{width}}  {verb.summary}" for verb in VERBS]


def _help(verb: Verb, command: Command) -> str:
    """The usage of a verb and, where it reads settings, the choices and values of all of them."""
    usage = verb.usage
    if command.task and not any(item.startswith("task=") for item in sys.argv):
        # The script that was started has chosen it.
        usage = usage.replace("[task=TASK] ", "").replace("task=TASK ", "")
    lines = [
        f"usage: {_started_as(verb)} {usage}",
        "",
        f"{verb.summary[0].upper()}{verb.summary[1:]}.",
    ]
    if verb.compose is None:
        return "\n".join(lines)
    import yaml

    settings = verb.compose(command)
    groups = _groups(verb, settings)
    return "\n".join(
        [
            *lines,
            f"Overrides are in Hydra's syntax: {verb.example.split(maxsplit=2)[-1]}.",
            *(
                ["What each key does stands beside it in the files of configs/."]
                * (verb.groups != ())
            ),
            "",
            *(["groups and their choices:"] if groups else []),
            *(f"  {group}: {', '.join(names)}" for group, names in groups.items()),
            *([""] if groups else []),
            "keys and their values, with the overrides given here:",
            *(f"  {line}" for line in yaml.safe_dump(settings, sort_keys=False).splitlines()),
        ]
    )


def _started_as(verb: Verb) -> str:
    """The command that was started: a script, or `psy-agents` and the verb."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return f"python -m {__package__} {verb.name}"
    return sys.argv[0] if program.suffix == ".py" else f"psy-agents {verb.name}"


def _groups(verb: Verb, settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """The groups that the settings of a verb come from, with their choices."""
    from psy_agents_noaug.config.loading import RECIPE, group_choices

    sections = {key.partition(".")[0] for key in settings}
    if "model" in sections:  # which a recipe is of
        sections.add(RECIPE)
    if verb.groups is not None:
        sections = set(verb.groups)
    groups = group_choices()
    return {group: groups[group] for group in sorted(sections & groups.keys())}


def _completions(
    prefix: str, parsed_args: argparse.Namespace, **_: object
) -> Mapping[str, str] | list[str]:
    """Return what the next word of a command line may be; argcomplete leaves out what does not fit."""
    from psy_agents_noaug.config.loading import flat

    if not parsed_args.words:
        return {verb.name: verb.summary for verb in VERBS}
    try:
        verb = _verb(parsed_args.words[0])
        if verb.compose is None:
            return []
        settings = verb.compose(_command(parsed_args.words[1:]))
    except ConfigError:
        return []
    choices = [
        f"{group}={name}" for group, names in _groups(verb, settings).items() for name in names
    ]
    return [*choices, *(f"{key}=" for key in flat(settings))]
