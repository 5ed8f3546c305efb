"""What a file or a path says must not command a terminal, a log or a spreadsheet."""

import csv
import shutil
from pathlib import Path

import optuna
import pytest

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.hpo.report import write_trials
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.training.checkpoint import Checkpoint, save_checkpoint
from psy_agents_noaug.utils.shown import MAX_LINE, printable

CLEAR_SCREEN = "\x1b[2J"
FORMULA = '=HYPERLINK("http://example.org")'


def test_control_characters_and_marks_of_direction_are_escaped_and_lines_are_cut() -> None:
    assert printable("a\x1b[31mb\tc\nd\r\x9be\u202ef\u2028") == (
        "a\\x1b[31mb\tc\nd\\r\\x9be\\u202ef\\u2028"
    )
    assert printable("x" * MAX_LINE) == "x" * MAX_LINE
    cut = printable(f"{'x' * (MAX_LINE + 5)}\nend")
    assert cut == f"{'x' * MAX_LINE}... (5 characters more)\nend"
    assert printable("traurig, 悲しい, грустно 😢") == "traurig, 悲しい, грустно 😢"


@pytest.mark.faults("ids with commands for a terminal", "refused, and not printed")
@pytest.mark.parametrize("suffix", [CLEAR_SCREEN, "\nINFO done", "\u202egnp", "\r"])
def test_an_identifier_that_is_not_printable_is_refused(
    overrides: list[str],
    tiny_corpus: Path,
    tmp_path: Path,
    own_logging: None,
    capfd: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, folder)
    with (folder / "redsm5_posts.csv").open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow([f"p99{suffix}", "We cooked soup."])
    assert main(["train", "task=criteria", *overrides, f"data.dir={folder}"]) == 2
    told = capfd.readouterr().err
    assert "row 31, column post_id: must be printable" in told
    assert suffix not in told


@pytest.mark.faults("a path with commands for a terminal", "printed with escapes")
def test_a_path_with_control_characters_is_escaped_wherever_it_is_printed(
    overrides: list[str], tmp_path: Path, own_logging: None, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / f"x{CLEAR_SCREEN}y"
    folder.mkdir()
    short = ["training.max_steps=1", "training.eval_steps=1", f"output_dir='{folder}'"]
    assert main(["train", "task=criteria", *overrides, *short]) == 0
    out, err = capfd.readouterr()
    assert "x\\x1b[2Jy" in out
    assert "\x1b" not in out + err


@pytest.mark.faults("a checkpoint with a huge value", "refused in one short line")
def test_a_value_of_a_strangers_file_is_cut(
    tmp_path: Path, own_logging: None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.pt"
    save_checkpoint(
        path, Checkpoint(task="x" * 10_000_000, step=1, config={}, metadata={}, weights={})
    )
    assert main(["eval", "task=criteria", f"checkpoint={path}"]) == 2
    assert len(capfd.readouterr().err) < 2 * MAX_LINE


@pytest.mark.faults("formulas in what becomes a CSV file", "written as text")
def test_a_spreadsheet_does_not_run_what_trials_csv_holds(tmp_path: Path) -> None:
    study = optuna.create_study()
    trial = study.ask({"model.pooling": optuna.distributions.CategoricalDistribution([FORMULA])})
    trial.set_user_attr("cause", "+1+cmd|' /C calc'!A0")
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    study.add_trial(optuna.trial.create_trial(value=-0.25))
    with write_trials(study, tmp_path / "trials.csv").open(newline="") as file:
        failed, complete = csv.DictReader(file)
    assert failed["model.pooling"] == f"'{FORMULA}"
    assert failed["cause"] == "'+1+cmd|' /C calc'!A0"
    assert complete["value"] == "-0.25"


@pytest.mark.faults("thousands of posts say [removed]", "counted in one line, not listed")
def test_mass_duplicates_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    n = 6000
    texts = ["[removed]", "We cooked soup and watched a film."]
    rows = [[f"p{number}", texts[number % 2]] for number in range(n)]
    _write(tmp_path / "posts.csv", [["post_id", "text"], *rows])
    labels = [[post_id, "A.1", number % 3 % 2] for number, (post_id, _) in enumerate(rows)]
    _write(tmp_path / "annotations.csv", [["post_id", "criterion_id", "status"], *labels])
    data = ["data=tables", f"data.dir={tmp_path}", "data.posts=posts.csv"]
    with caplog.at_level("INFO"):
        prepare_data(load_train_config("criteria", [*data, "data.annotations=annotations.csv"]))
    assert "exact duplicates of a text in different splits" in caplog.text
    assert max(map(len, caplog.messages)) < MAX_LINE
    assert len(caplog.text) < 10_000


def _write(path: Path, rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
