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
        flags: the flags that it knows besides `--help`.
        takes_words: whether it takes words that are no settings.
    """

    name: str
    summary: str
    usage: str
    example: str
    run: Callable[[Command], str]
    compose: Callable[[Command], dict[str, Any]] | None = None
    flags: tuple[str, ...] = ()
    takes_words: bool = False


# -------------------------------------------------------------------------------------------- verbs


def _train(command: Command) -> str:
    from psy_agents_noaug.config.loading import load_train_config

    config = load_train_config(command.task or DEFAULT_TASK, command.overrides)
    from psy_agents_noaug.run.train import train

    return _summary(train(config))


def _evaluate(command: Command) -> str:
    from psy_agents_noaug.config.loading import given, load_evaluate_config

    task, checkpoint = command.task, given(command.overrides).get("checkpoint")
    if task is None and checkpoint is not None:
        from psy_agents_noaug.run.evaluate import checkpoint_task

        task = checkpoint_task(Path(str(checkpoint)))
    task = task or DEFAULT_TASK  # without a checkpoint, whose absence is then reported
    evaluation, explicit = load_evaluate_config(task, command.overrides)
    from psy_agents_noaug.run.evaluate import evaluate

    return _summary(evaluate(evaluation, task_name=task, explicit=explicit))


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
    return _train(replace(command, task=task))


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


def _info(command: Command) -> str:
    from psy_agents_noaug.run.system_report import as_text, system_report

    report = system_report()
    return json.dumps(report, indent=2) if command.json else as_text(report)


def _training_settings(command: Command) -> dict[str, Any]:
    from psy_agents_noaug.config.loading import compose_config

    return compose_config("config", command.overrides, task=command.task or DEFAULT_TASK)


def _evaluation_settings(command: Command) -> dict[str, Any]:
    from psy_agents_noaug.config.loading import compose_config

    return compose_config("eval", command.overrides, task=command.task or DEFAULT_TASK)


def _tuning_settings(command: Command) -> dict[str, Any]:
    """Return the settings of a stage, with `hpo.` before their keys, and those of its trainings."""
    from psy_agents_noaug.config.loading import compose_config

    stage = _stage(command, default="stage0_sanity")
    own = [item.removeprefix("hpo.") for item in command.overrides if item.startswith("hpo.")]
    others = [item for item in command.overrides if not item.startswith(("hpo=", "hpo."))]
    settings = compose_config(f"hpo/{stage}", own)
    return {
        **{f"hpo.{key}": value for key, value in settings.items()},
        **_training_settings(replace(command, overrides=others)),
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
    return f"\n{result.summary}\n\nrun directory: {result.directory}"


def _required_task(command: Command) -> str:
    if command.task is None:
        choices = " or ".join(f"task={name}" for name in task_names())
        raise ConfigError(f"`task` must be given: {choices}.")
    return command.task


VERBS = (
    Verb(
        "train",
        "train a model, and evaluate it on val",
        usage="[task=TASK] [GROUP=CHOICE | KEY=VALUE]...",
        example="psy-agents train task=evidence data=redsm5 data.dir=DIR training.epochs=3",
        run=_train,
        compose=_training_settings,
    ),
    Verb(
        "eval",
        "evaluate a trained model on a split",
        usage="checkpoint=RUN_OR_FILE [split=train|val|test] [GROUP=CHOICE | KEY=VALUE]...",
        example="psy-agents eval checkpoint=outputs/checkpoints/best_checkpoint.pt split=val",
        run=_evaluate,
        compose=_evaluation_settings,
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
        usage="task=TASK best_config=FILE [GROUP=CHOICE | KEY=VALUE]...",
        example="psy-agents train-best task=criteria best_config=outputs/hpo_stage2/best_config.yaml",
        run=_train_best,
        compose=_training_settings,
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
        "info",
        "report versions, optional packages, devices, precisions and threads",
        usage="[--json]",
        example="psy-agents info --json",
        run=_info,
        flags=("--json",),
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
    # No key has a slash: such a word is a path.
    bare = [
        word
        for word in given
        if verb.takes_words and ("=" not in word or "/" in word.partition("=")[0])
    ]
    command = replace(
        _command([word for word in given if word not in bare]), json=parsed.json, words=bare
    )
    return _help(verb, command) if parsed.help else verb.run(command)


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
    faults = syntax_faults(words, keys=list(flat(settings)), groups=_groups(settings))
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
    return "\n".join(
        [
            *lines,
            "Overrides are in Hydra's syntax: data=redsm5 data.dir=DIR training.epochs=3.",
            "What each key does stands beside it in the files of configs/.",
            "",
            "groups and their choices:",
            *(f"  {group}: {', '.join(names)}" for group, names in _groups(settings).items()),
            "",
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


def _groups(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """The groups that the settings come from, with their choices."""
    from psy_agents_noaug.config.loading import RECIPE, group_choices

    sections = {RECIPE, *(key.partition(".")[0] for key in settings)}
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
    choices = [f"{group}={name}" for group, names in _groups(settings).items() for name in names]
    return [*choices, *(f"{key}=" for key in flat(settings))]
