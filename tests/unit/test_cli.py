"""The command line: verbs, help, what is written wrongly, completion. No test here loads a model."""

import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import argcomplete
import pytest
import yaml

from psy_agents_noaug import __version__, cli
from psy_agents_noaug.cli import VERBS, main
from psy_agents_noaug.tasks import registry

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py"))
FRAMEWORKS = {"torch", "transformers", "pandas", "sklearn", "mlflow", "optuna", "pydantic"}

pytestmark = pytest.mark.usefixtures("own_logging")


@pytest.fixture
def refusal(capsys):
    """Return a function from a command line to the one message that it is refused with."""

    def told(*arguments: str) -> str:
        assert main(arguments) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("ConfigError: ")
        return error

    return told


@pytest.fixture
def output(capsys):
    """Return a function from a command line to what it prints."""

    def printed(*arguments: str) -> str:
        assert main(arguments) == 0
        return capsys.readouterr().out

    return printed


def imported_by(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The modules that a process with `-X importtime` has imported."""
    return set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, flags=re.M))


# --------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["trian"], ["train", "--help"], ["predict", "--help"], ["tune", "--help"]],
    ids=" ".join,
)
def test_help_and_slips_are_answered_without_importing_a_framework(arguments):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "psy_agents_noaug", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "argparse" in imported_by(done)
    assert imported_by(done) & FRAMEWORKS == set()
    assert done.returncode == (2 if arguments == ["trian"] else 0)


def test_without_arguments_the_verbs_are_listed_as_an_error(capsys):
    assert main([]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    for verb in VERBS:
        assert f"  {verb.name:12}{verb.summary}\n" in error
        assert f"  {verb.example}\n" in error


def test_help_is_what_is_shown_without_arguments(output, capsys):
    main([])
    listed = capsys.readouterr().err
    assert output("--help") == listed


def test_the_version_is_the_packages(output):
    assert output("--version") == f"psy-agents {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help", "seed=5"], ["seed=5", "-h"]])
def test_help_of_a_verb_shows_groups_and_the_values_with_the_overrides_given(output, arguments):
    text = output("train", "task=evidence", *arguments)
    assert "\n  task: criteria, evidence, joint\n" in text
    assert "\n  tracking: mlflow, none\n" in text
    assert "\n  recipe: joint_label_attention, none\n" in text
    keys = yaml.safe_load(text.partition("keys and their values")[2].partition(":\n")[2])
    assert (keys["seed"], keys["task"]["name"]) == (5, "evidence")


def test_help_of_predict_shows_what_it_reads_alone(output):
    text = output("predict", "--help", "data=redsm5", "threshold=0.4")
    assert (
        "\ngroups and their choices:\n  data: imported, redsm5, redsm5_hub, sample, tables\n\n"
        in text
    )
    keys = yaml.safe_load(text.partition("keys and their values")[2].partition(":\n")[2])
    assert (keys["threshold"], keys["data"].keys()) == (
        0.4,
        {"source", "dir", "posts", "columns"},
    )
    assert "epochs" not in keys["training"]


def test_predict_takes_the_task_of_the_checkpoint(refusal):
    told = refusal("predict", "task=joint", "checkpoint=run", "data.posts=mine.csv")
    assert "`task` is that of the checkpoint; leave it out." in told


def test_help_of_a_verb_that_reads_no_groups_names_none(output):
    text = output("export", "--help", "format=onnx")
    assert "groups and their choices" not in text
    assert "  format: onnx" in text
    assert "checkpoint=outputs/criteria/RUN format=onnx" in text


def test_help_of_tune_shows_the_settings_of_the_stage_and_of_its_trainings(output):
    text = output("tune", "--help", "hpo=stage1_coarse", "hpo.n_trials=7", "training.epochs=9")
    keys = yaml.safe_load(text.partition("keys and their values")[2].partition(":\n")[2])
    assert (keys["hpo.name"], keys["hpo.n_trials"]) == ("stage1_coarse", 7)
    assert keys["training"]["epochs"] == 9


@pytest.mark.parametrize(
    ("program", "usage"),
    [
        ("/usr/bin/psy-agents", "psy-agents train [task=TASK] [GROUP"),
        (
            "/lib/psy_agents_noaug/__main__.py",
            "python -m psy_agents_noaug train [task=TASK] [GROUP",
        ),
        ("scripts/train_joint.py", "scripts/train_joint.py [GROUP"),
    ],
)
def test_the_usage_line_shows_the_command_that_was_started(monkeypatch, output, program, usage):
    given = [] if program.startswith("scripts") else ["task=joint"]
    monkeypatch.setattr(sys, "argv", [program, *given])
    assert output("train", "task=joint", "--help").startswith(f"usage: {usage}=CHOICE")


# -------------------------------------------------------------------------------------------- slips


def test_an_unknown_verb_is_answered_with_the_verbs(refusal):
    told = refusal("trian", "task=criteria")
    assert "`trian` is not a verb of psy-agents; did you mean `train`?\n" in told
    assert all(f"  {verb.name:12}{verb.summary}\n" in told for verb in VERBS)
    assert "did you mean" not in refusal("sing")


def test_a_setting_in_place_of_the_verb_is_told(refusal):
    assert "The verb must come first: psy-agents VERB" in refusal("task=criteria", "train")


@pytest.mark.parametrize(
    ("verb", "argument", "told"),
    [
        (
            "train",
            "training.epoch=3",
            "`training.epoch` is not a known key; did you mean `training.epochs`?",
        ),
        ("train", "epochs=3", "`epochs` is not a known key; did you mean `training.epochs`?"),
        (
            "train",
            "model.lora.rnak=3",
            "`model.lora.rnak` is not a known key; did you mean `model.lora.rank`?",
        ),
        (
            "train",
            "learning_rate=3",
            "did you mean `model.learning_rate` or `training.learning_rate`?",
        ),
        ("train", "qqq=3", "`qqq` is not a known key\n"),
        ("train", "model=minlm", "but is minlm instead; did you mean `minilm`?"),
        ("train", "model=qqq", "modernbert_base, roberta_base, but is qqq instead.\n"),
        ("train", "task=evidense", "but is evidense instead; did you mean `evidence`?"),
        ("tune", "hpo=stage1_corse", "but is stage1_corse instead; did you mean `stage1_coarse`"),
    ],
)
def test_what_was_probably_meant_is_suggested(refusal, verb, argument, told):
    task = [] if argument.startswith("task=") else ["task=criteria"]
    assert told in refusal(verb, *task, argument)


def test_only_keys_of_the_chosen_task_are_suggested(refusal):
    assert "did you mean `task.stride`?" in refusal("train", "task=evidence", "task.strid=8")
    assert "did you mean" not in refusal("train", "task=criteria", "task.strid=8")


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--epochs", "3"], "`--epochs 3`: write training.epochs=3."),
        (["--epochs=3"], "`--epochs=3`: write training.epochs=3."),
        (["--epochs"], "`--epochs`: write training.epochs=VALUE."),
        (["--max-lenght", "64"], "`--max-lenght 64`: write model.max_length=64."),
        (["--model", "minilm"], "`--model minilm`: write model=minilm."),
        (["--stride", "8"], "`--stride 8`: write task.stride=8."),
        (["minilm"], "`minilm`: write model=minilm."),
        (["training.epochs"], "`training.epochs`: write training.epochs=VALUE."),
        (["--qqq", "seed=1"], "`--qqq`: settings are written KEY=VALUE, and --help lists them."),
        (["qqq"], "`qqq`: settings are written KEY=VALUE, and --help lists them."),
        ([""], "``: settings are written KEY=VALUE, and --help lists them."),
        (["--json"], "`--json`: settings are written KEY=VALUE, and --help lists them."),
        (["-m"], "`-m`: psy-agents tune searches"),
        (["--multirun", "seed=1,2"], "`--multirun`: psy-agents tune searches"),
        (["--cfg", "job"], "`--cfg job`: psy-agents train --help prints the composed configuration."),
        (["--resolve"], "`--resolve`: psy-agents train --help prints"),
        (["--config-name=mine"], "`--config-name=mine`: task=TASK and GROUP=CHOICE choose"),
        (["-cn", "mine"], "`-cn mine`: task=TASK and GROUP=CHOICE choose"),
        (["-cp", "conf"], "`-cp conf`: task=TASK and GROUP=CHOICE choose"),
        (["--info"], "`--info`: psy-agents info describes"),
        (["hydra.run.dir=x"], "`hydra.run.dir=x`: Hydra composes the settings here, but runs nothing"),
        (["+hydra/launcher=joblib"], "`+hydra/launcher=joblib`: Hydra composes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_not_key_value_is_answered_with_how_to_write_it(refusal, arguments, answer):
    told = refusal("train", "task=evidence", *arguments)
    assert f"The command line must hold key=value pairs:\n  - {answer}" in told
    assert told.count("\n") == 2


def test_all_that_is_not_key_value_is_in_one_message(refusal):
    told = refusal("train", "-m", "seed=1", "--epochs", "3", "joint", "~task.loss")
    assert re.findall(r"^  - `(.+?)`", told, flags=re.M) == ["-m", "--epochs 3", "joint"]


def test_several_values_for_one_key_are_refused_with_how_to_write_a_list(refusal):
    told = refusal("train", "seed=1,2")
    assert "`seed=1,2`: a setting has one value. A list is written KEY=[A,B]" in told
    assert "multirun" not in told


@pytest.mark.parametrize("verb", ["tune", "train-best"])
def test_a_verb_without_a_default_task_needs_one(refusal, verb):
    assert "`task` must be given: task=criteria or task=evidence or task=joint" in refusal(verb)


def test_a_task_is_chosen_in_any_spelling_and_a_word_without_a_key_is_refused(refusal):
    assert "but is both instead" in refusal("train", "+task=both")
    assert "`=3`" in refusal("train", "=3")


def test_a_second_task_is_refused(refusal):
    told = refusal("train", "task=criteria", "seed=1", "task=joint")
    assert "`task` must be criteria here, but is joint instead" in told


def test_train_best_needs_a_best_config(refusal):
    assert "`best_config` must be given: best_config=" in refusal("train-best", "task=joint")


def test_tune_without_optuna_names_the_extra(monkeypatch, refusal):
    monkeypatch.setitem(sys.modules, "optuna", None)
    told = refusal("tune", "task=criteria", "hpo=stage0_sanity")
    assert "needs optuna, which is not installed: pip install 'psy-agents-noaug[hpo]'" in told


# ---------------------------------------------------------------------------------------- tracking


@pytest.mark.parametrize(
    "words", [[], ["sync"], ["send", "outputs/a"], ["sync", "outputs/a", "tracking.experiment=b"]]
)
def test_tracking_takes_sync_runs_and_an_address(refusal, words):
    assert "`psy-agents tracking` must be followed by sync and the dir" in refusal(
        "tracking", *words
    )


def test_a_run_may_have_an_equals_sign_in_its_name(refusal):
    told = refusal("tracking", "sync", "outputs/lr=0.1", "tracking.uri=sqlite:///a/b.db")
    assert "config.yaml or manifest.json is missing in outputs/lr=0.1" in told


def test_tracking_refuses_flags(refusal):
    told = refusal("tracking", "sync", "outputs/a", "--all")
    assert "psy-agents tracking takes sync RUN... [tracking.uri=URI] alone, not --all." in told


def test_folders_that_are_no_runs_are_all_named(refusal, tmp_path):
    told = refusal("tracking", "sync", str(tmp_path / "a"), str(tmp_path / "b"))
    assert all(f"manifest.json is missing in {tmp_path / name}." in told for name in "ab")


# --------------------------------------------------------------------------------------------- info


def test_info_reports_versions_devices_and_extras_without_host_or_user(output):
    text = output("info")
    import torch

    assert text.startswith(f"psy-agents-noaug {__version__}\n")
    assert f"PyTorch       {torch.__version__}, {torch.get_num_threads()} threads\n" in text
    assert re.search(r"^  cpu: .+ fast precisions: fp32", text, flags=re.M)
    assert re.search(r"^  transformers +\d", text, flags=re.M)
    assert re.search(
        r"^  offline +(installed|lacks .+: pip install 'psy-agents-noaug\[offline\]')$", text, re.M
    )
    for private in (socket.gethostname(), str(Path.home()), str(Path.cwd())):
        assert not re.search(rf"(?<![\w.~-]){re.escape(private)}(?![\w.-])", text)


def test_info_as_json_holds_the_same(output):
    report = json.loads(output("info", "--json"))
    assert report["version"] == __version__
    assert report["packages"]["torch"] in output("info")
    assert {"git", "devices", "extras", "system", "config_dir"} <= report.keys()
    assert "fp32" in report["devices"][0]["fast_precisions"]


def test_info_takes_no_settings(refusal):
    assert "takes the directory of one run, or nothing, not seed=1." in refusal("info", "seed=1")


# --------------------------------------------------------------------------------------- completion


class _Finder(argcomplete.CompletionFinder):
    def _init_debug_stream(self):
        """Leave descriptor 9, which argcomplete would take, to pytest."""


def _completing(line):
    """The variables by which a shell asks for the completion of a line that ends at the cursor."""
    return {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("", [verb.name for verb in VERBS]),
        ("ev", ["eval "]),
        ("train task=", ["task=criteria", "task=evidence", "task=joint"]),
        ("train data=sa", ["data=sample "]),
        ("train task=evidence task.str", ["task.stride="]),
        ("train task=criteria task.str", []),
        ("eval task=joint sp", ["split="]),
        ("tune hpo=stage2_fine hpo.narrow.w", ["hpo.narrow.width="]),
        ("predict data=red", ["data=redsm5", "data=redsm5_hub"]),
        ("predict thr", ["threshold="]),
        ("predict model=mini", []),
        ("train checkpoint=out", []),
        ("train --he", ["--help "]),
        ("info see", []),
        ("nothing see", []),
        ("train data=nothing see", []),
    ],
)
def test_verbs_tasks_groups_and_keys_are_completed(monkeypatch, line, offered):
    for name, value in _completing(f"psy-agents {line}").items():
        monkeypatch.setenv(name, value)
    answer = io.StringIO()
    _Finder()(cli._parser(), always_complete_options=False, exit_method=int, output_stream=answer)
    assert answer.getvalue().split("\n") == (offered or [""])


def test_a_shell_gets_its_completions_without_a_framework_being_imported(tmp_path):
    answer = tmp_path / "offered"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "psy_agents_noaug"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={
            **os.environ,
            **_completing("psy-agents train training.epo"),
            "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        },
    )
    assert answer.read_text() == "training.epochs="
    assert imported_by(done) & FRAMEWORKS == set()


# ------------------------------------------------------------------------------------------ scripts


def test_the_scripts_are_those_that_people_rely_on():
    assert {path.stem for path in SCRIPTS} == {
        *(f"{verb}_{task}" for verb in ("train", "eval") for task in registry.task_names()),
        "run_hpo_stage",
        "train_best",
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_a_call_of_main_with_its_verb_and_task(monkeypatch, path):
    source = path.read_text()
    assert len(source.splitlines()) <= 12
    called = []
    monkeypatch.setattr(cli, "main", called.append)
    monkeypatch.setattr(sys, "argv", [str(path), "seed=3"])
    with pytest.raises(SystemExit):
        exec(compile(source, path, "exec"), {"__name__": "__main__"})
    verb, _, task = path.stem.partition("_")
    start = {"run_hpo_stage": ["tune"], "train_best": ["train-best"]}
    assert called == [[*start.get(path.stem, [verb, f"task={task}"]), "seed=3"]]
