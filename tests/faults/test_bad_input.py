"""Whatever a user gets wrong: exit code 2, one message that names every fault, no traceback."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from psy_agents_noaug.cli import main

POSTS, ANNOTATIONS = "redsm5_posts.csv", "redsm5_annotations.csv"
Refusal = Callable[..., str]
Corpus = Callable[..., Path]


@pytest.fixture
def broken_corpus(tiny_corpus: Path, tmp_path: Path) -> Corpus:
    """Return a function that copies the tiny corpus, lets `edit` change its tables, and saves it."""

    def broken(edit: Callable[[list[dict[str, str]], list[dict[str, str]]], None]) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(tiny_corpus, folder)
        tables = []
        for name in (POSTS, ANNOTATIONS):
            with (folder / name).open(newline="", encoding="utf-8") as file:
                tables.append(list(csv.DictReader(file)))
        edit(*tables)
        for name, rows in zip((POSTS, ANNOTATIONS), tables, strict=True):
            with (folder / name).open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(dict.fromkeys(k for row in rows for k in row)))
                writer.writeheader()
                writer.writerows(rows)
        return folder

    return broken


# ------------------------------------------------------------------------------- configuration


def test_all_faults_of_a_configuration_are_in_one_message(refusal_of_training: Refusal) -> None:
    told = refusal_of_training(
        "training.epoch=3", "training.epochs=two", "model.max_lenght=64", "seed=-1"
    )
    for fault in (
        "`training.epoch` is not a known key",
        "`training.epochs` is 'two'",
        "`model.max_lenght` is not a known key",
        "`seed` is -1",
    ):
        assert told.count(fault) == 1
    assert told.count("\n  - ") == 4


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data=nope", "nope"),
        ("training=fastest", "fastest"),
        ("training.epochs", "key=value"),
        ("training.scheduler=sideways", "`training.scheduler` must be one of linear"),
        ("training.monitor=val/f1_makro", "`training.monitor` must be a figure on val"),
        ("training.monitor=test/f1_macro", "`training.monitor` must be a figure on val"),
        ("model.max_length=9", "`model.max_length` must exceed"),
        ("training.device=gpu", "`training.device`"),
        ("run_name=../elsewhere", "`run_name`"),
        ("data.split_fractions=[0.5,0.5,0.5]", "`data.split_fractions` must be three"),
        ("best_config=/nowhere/best.yaml", "/nowhere/best.yaml is not there"),
        ("resume=/nowhere/run", "/nowhere/run holds no config.yaml"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(
    refusal_of_training: Refusal, override: str, expected: str
) -> None:
    told = refusal_of_training(override)
    assert told.startswith("ConfigError: ")
    assert expected in told


def test_a_data_folder_must_be_given_for_redsm5(
    own_logging: None, only_message: Callable[[], str]
) -> None:
    assert main(["train", "task=criteria", "data=redsm5", "tracking=none"]) == 2
    assert "`data.dir` must be given: data.dir=..." in only_message()


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2\n", "training: {epoch: 3}\n"])
def test_a_best_config_that_is_no_mapping_of_known_keys_is_refused(
    refusal_of_training: Refusal, tmp_path: Path, content: str
) -> None:
    best_config = tmp_path / "best.yaml"
    best_config.write_text(content)
    told = refusal_of_training(f"best_config={best_config}")
    assert ("`training.epoch` is not a known key" if "epoch" in content else "best.yaml") in told


@pytest.mark.faults("the name of a finished run is used again", "refused")
def test_a_finished_run_is_neither_overwritten_nor_continued_with_other_settings(
    overrides: list[str], refusal_of_training: Refusal, finished: Path
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    same = (f"output_dir={finished.parents[1]}", "run_name=done")
    assert f"There is a run in {finished} already." in refusal_of_training(*same)
    told = refusal_of_training(*same, "resume=auto", "training.learning_rate=0.5")
    assert "`training.learning_rate` was 0.001, but is 0.5 now" in told
    told = refusal_of_training(f"resume={finished}", "training.epochs=9", "model.max_length=90")
    assert "`training.epochs` was 2, but is 9 now" in told
    assert "`model.max_length` was 96, but is 90 now" in told
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("wrong", ["training.monitor=val/nothing", "data.splits=nowhere.json"])
def test_a_refused_run_does_not_keep_its_name(
    overrides: list[str], refusal_of_training: Refusal, wrong: str
) -> None:
    refusal_of_training("run_name=again", wrong)
    assert main(["train", "task=criteria", *overrides, "run_name=again"]) == 0


@pytest.mark.faults("MLflow cannot be reached", "refused at the start within seconds")
def test_a_tracking_store_that_cannot_be_reached_is_refused(
    overrides: list[str], own_logging: None, only_message: Callable[[], str]
) -> None:
    tracked = [item for item in overrides if item != "tracking=none"]
    uri = "sqlite:////dev/null/mlflow.db"
    assert main(["train", "task=criteria", *tracked, f"tracking.uri={uri}"]) == 2
    assert "`tracking.uri` must be an MLflow store that can be reached" in only_message()


def test_a_model_name_that_cannot_be_reached_is_told_without_a_traceback(
    refusal_of_training: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told = refusal_of_training("model.pretrained_model=nobody/no-such-encoder")
    assert told.startswith(
        "ConfigError: `model.pretrained_model` 'nobody/no-such-encoder' cannot be loaded"
    )


# ---------------------------------------------------------------------------------------- data


def test_missing_files_are_all_named(
    refusal_of_training: Refusal, tiny_corpus: Path, tmp_path: Path
) -> None:
    told = refusal_of_training(f"data.dir={tmp_path}")
    assert told.startswith("DataError: ")
    for name in (POSTS, ANNOTATIONS):
        assert f"{tmp_path / name}: there is no such file" in told
    told = refusal_of_training("data.splits=elsewhere.json")
    assert f"{tiny_corpus / 'elsewhere.json'}: there is no such file" in told


@pytest.mark.parametrize(
    "content", ["[" * 10_000, '{"a":' * 10_000, '{"format": ' + "9" * 5_000 + "}"]
)
@pytest.mark.faults("JSON that is nested too deeply or has huge integers", "refused with its file")
def test_json_that_python_cannot_parse_is_refused_with_its_file(
    refusal_of_training: Refusal, tiny_corpus: Path, tmp_path: Path, content: str
) -> None:
    for key, name in (("splits", "mine.json"), ("posts", "posts.json"), ("posts", "posts.jsonl")):
        path = tmp_path / name
        path.write_text(content)
        told = refusal_of_training(f"data.{key}={path}")
        assert told.startswith("DataError: ")
        assert name in told
    best = tmp_path / "best.yaml"
    best.write_text(content)
    assert f"`best_config` {best} " in refusal_of_training(f"best_config={best}")


def _without_status(posts: list[dict[str, str]], annotations: list[dict[str, str]]) -> None:
    for row in annotations:
        del row["status"]


def _with_a_post_twice(posts: list[dict[str, str]], annotations: list[dict[str, str]]) -> None:
    posts[4]["post_id"] = "p02"


def _with_an_unknown_post(posts: list[dict[str, str]], annotations: list[dict[str, str]]) -> None:
    annotations[6]["post_id"] = "p99"


def _with_an_unknown_criterion(
    posts: list[dict[str, str]], annotations: list[dict[str, str]]
) -> None:
    annotations[7]["DSM5_symptom"] = "BOREDOM"


def _with_a_status_of_two(posts: list[dict[str, str]], annotations: list[dict[str, str]]) -> None:
    annotations[8]["status"] = "2"


def _with_an_empty_text(posts: list[dict[str, str]], annotations: list[dict[str, str]]) -> None:
    posts[9]["text"] = ""


def _with_a_blank_text(posts: list[dict[str, str]], annotations: list[dict[str, str]]) -> None:
    posts[10]["text"] = " \t "


FAULTS = {
    _with_a_post_twice: f"{POSTS}, row 5, column post_id: must be unique ('p02' is in row 3 too)",
    _with_an_unknown_post: f"{ANNOTATIONS}, row 7, column post_id: must be in the posts ('p99')",
    _with_an_unknown_criterion: (
        f"{ANNOTATIONS}, row 8, column criterion_id: must be a criterion or an alias ('BOREDOM')"
    ),
    _with_a_status_of_two: f"{ANNOTATIONS}, row 9, column status: must be 0 or 1",
    _with_an_empty_text: f"{POSTS}, row 10, column text: must not be missing",
    _with_a_blank_text: f"{POSTS}, row 11, column text: must not be only whitespace",
    _without_status: f"{ANNOTATIONS}, column status: is missing (the file has 'post_id', ",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.faults(
    "a cell breaks the data contract", "refused with file, row, column and rule, without the text"
)
def test_a_fault_of_a_table_is_told_with_file_row_column_and_rule(
    refusal_of_training: Refusal, broken_corpus: Corpus, fault: Callable[..., None]
) -> None:
    told = refusal_of_training(f"data.dir={broken_corpus(fault)}")
    assert told.startswith("DataError: The corpus breaks the data contract:")
    assert FAULTS[fault] in told
    # A post that is renamed, or that has no text, leaves its annotation without a post at most.
    assert told.count("\n  - ") == (2 if fault is _with_a_post_twice else 1)


def test_the_faults_of_all_tables_are_told_at_once(
    refusal_of_training: Refusal, broken_corpus: Corpus
) -> None:
    together = [fault for fault in FAULTS if fault is not _without_status]

    def everything(*tables: list[dict[str, str]]) -> None:
        for fault in together:
            fault(*tables)

    told = refusal_of_training(f"data.dir={broken_corpus(everything)}")
    for fault in together:
        assert FAULTS[fault] in told


def test_a_split_file_that_divides_a_group_is_refused(
    refusal_of_training: Refusal, broken_corpus: Corpus
) -> None:
    def one_author(posts: list[dict[str, str]], annotations: list[dict[str, str]]) -> None:
        for number, row in enumerate(posts):
            row["group_id"] = "prolific" if number in (0, 14, 29) else f"author{number}"

    told = refusal_of_training(f"data.dir={broken_corpus(one_author)}")
    assert "group 'prolific': must be in one split (train, val, test)" in told
    assert told.count("\n  - ") == 1


def test_a_split_file_must_hold_each_post_once_and_no_other(
    refusal_of_training: Refusal, tmp_path: Path
) -> None:
    ids = [f"p{number:02d}" for number in range(30)]
    splits = {"format": 1, "train": ids[:14], "val": ["p99", *ids[14:22]], "test": ids[21:29]}
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(splits))
    told = refusal_of_training(f"data.splits={path}")
    assert "val: must hold known posts only ('p99')" in told
    assert "test: must hold a post once, in one split ('p21' is in val already)" in told
    assert "post 'p29': must be in a split" in told


def test_more_tokens_than_the_encoder_has_positions_are_refused(
    refusal_of_training: Refusal,
) -> None:
    assert "`model.max_length` must be at most 128" in refusal_of_training("model.max_length=129")
