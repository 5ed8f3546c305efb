"""Whatever a user gets wrong: exit code 2, one message that names every fault, no traceback."""

import csv
import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.run.train import train
from psy_agents_noaug.training.checkpoint import _TAIL, Checkpoint, save_checkpoint

POSTS, ANNOTATIONS = "redsm5_posts.csv", "redsm5_annotations.csv"
Refusal = Callable[..., str]
Corpus = Callable[..., Path]


class _TouchesAFile:
    """What an attacker would put into a checkpoint: unpickling it runs a command."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


@pytest.fixture
def refusal_of_training(
    overrides: list[str], own_logging: None, capfd: pytest.CaptureFixture[str]
) -> Refusal:
    """Return a function from further overrides to the message with which training is refused."""

    def refusal(*more: str) -> str:
        assert main(["train", "task=criteria", *overrides, *more]) == 2
        return _only_message(capfd)

    return refusal


@pytest.fixture
def refusal_of_evaluation(own_logging: None, capfd: pytest.CaptureFixture[str]) -> Refusal:
    """Return a function from arguments to the message with which evaluating is refused."""

    def refusal(*arguments: str) -> str:
        assert main(["eval", "task=criteria", *arguments]) == 2
        return _only_message(capfd)

    return refusal


def _only_message(capfd: pytest.CaptureFixture[str]) -> str:
    """The error that ends what was said; log lines may come before it."""
    out, told = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in told
    found = re.findall(r"^(?:Config|Data|Checkpoint)Error: [^\0]+\Z", told, flags=re.MULTILINE)
    assert len(found) == 1, told
    assert found[0].count("Error: ") == 1
    return found[0]


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


@pytest.fixture(scope="module")
def finished(
    overrides_for: Callable[[Path], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The directory of a finished run, `<output_dir>/criteria/done`."""
    overrides = overrides_for(tmp_path_factory.mktemp("finished"))
    return train(load_train_config("criteria", [*overrides, "run_name=done"])).directory


@pytest.fixture
def checkpoint(finished: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be spoilt."""
    return Path(shutil.copy(finished / "checkpoints" / "best_checkpoint.pt", tmp_path))


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
    own_logging: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "task=criteria", "data=redsm5", "tracking=none"]) == 2
    assert "`data.dir` must be given: data.dir=..." in _only_message(capfd)


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2\n", "training: {epoch: 3}\n"])
def test_a_best_config_that_is_no_mapping_of_known_keys_is_refused(
    refusal_of_training: Refusal, tmp_path: Path, content: str
) -> None:
    best_config = tmp_path / "best.yaml"
    best_config.write_text(content)
    told = refusal_of_training(f"best_config={best_config}")
    assert ("`training.epoch` is not a known key" if "epoch" in content else "best.yaml") in told


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
    overrides: list[str], own_logging: None, capfd: pytest.CaptureFixture[str]
) -> None:
    tracked = [item for item in overrides if item != "tracking=none"]
    uri = "sqlite:////dev/null/mlflow.db"
    assert main(["train", "task=criteria", *tracked, f"tracking.uri={uri}"]) == 2
    assert "`tracking.uri` must be an MLflow store that can be reached" in _only_message(capfd)


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


# --------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_must_be_given_and_be_there(refusal_of_evaluation: Refusal) -> None:
    assert "`checkpoint` must be given" in refusal_of_evaluation()
    told = refusal_of_evaluation("checkpoint=/nowhere/best.pt", "split=val")
    assert told == "CheckpointError: There is no checkpoint at /nowhere/best.pt.\n"


def test_what_to_evaluate_is_checked_as_a_whole(refusal_of_evaluation: Refusal) -> None:
    told = refusal_of_evaluation("split=validation")
    assert "`checkpoint` must be given" in told
    assert "`split` is 'validation'" in told


def test_an_unknown_key_is_refused_in_an_evaluation_too(
    refusal_of_evaluation: Refusal, checkpoint: Path
) -> None:
    told = refusal_of_evaluation(f"checkpoint={checkpoint}", "training.eval_batch_sise=8")
    assert "`training.eval_batch_sise` is not a known key" in told


def test_a_checkpoint_of_another_task_is_refused(
    refusal_of_evaluation: Refusal, tmp_path: Path
) -> None:
    path = tmp_path / "evidence.pt"
    save_checkpoint(path, Checkpoint(task="evidence", step=1, config={}, metadata={}, weights={}))
    told = refusal_of_evaluation(f"checkpoint={path}")
    assert "must be a checkpoint of the task `criteria`, but is of `evidence` instead" in told


def test_a_checkpoint_of_another_division_of_the_corpus_is_refused(
    refusal_of_evaluation: Refusal, checkpoint: Path
) -> None:
    told = refusal_of_evaluation(f"checkpoint={checkpoint}", "data.splits=null")
    assert "posts of test in training, so figures on it would be too good" in told


@pytest.mark.parametrize("kept", [0, 1, 60, 0.5, -1, -60])
@pytest.mark.faults("a checkpoint is cut short", "refused with one message")
def test_a_truncated_checkpoint_is_refused(
    refusal_of_evaluation: Refusal, checkpoint: Path, kept: float
) -> None:
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
    assert f"{checkpoint} is truncated" in refusal_of_evaluation(f"checkpoint={checkpoint}")


@pytest.mark.parametrize("place", [0.0, 0.001, 0.25, 0.5, 0.75, 0.999])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_anywhere_is_noticed(
    refusal_of_evaluation: Refusal, checkpoint: Path, place: float, bit: int
) -> None:
    content = bytearray(checkpoint.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    checkpoint.write_bytes(content)
    told = refusal_of_evaluation(f"checkpoint={checkpoint}")
    assert f"{checkpoint} is damaged: its content does not match its checksum" in told


@pytest.mark.parametrize("from_the_end", [1, 2, 64, 65, 80, 64 + len(_TAIL), 65 + len(_TAIL)])
def test_a_flipped_bit_of_the_checksum_itself_is_noticed(
    refusal_of_evaluation: Refusal, checkpoint: Path, from_the_end: int
) -> None:
    content = bytearray(checkpoint.read_bytes())
    content[-from_the_end] ^= 0x80
    checkpoint.write_bytes(content)
    told = refusal_of_evaluation(f"checkpoint={checkpoint}")
    assert re.search(r"is damaged|checksum is missing", told)


@pytest.mark.parametrize("part", ["config", "metadata", "decision_rule", "metrics", "weights"])
def test_a_checkpoint_that_would_run_code_is_refused_though_its_checksum_is_right(
    refusal_of_evaluation: Refusal, tmp_path: Path, part: str
) -> None:
    trap, path = tmp_path / "sprung", tmp_path / "evil.pt"
    parts: dict[str, Any] = {"config": {}, "metadata": {}, "weights": {}}
    parts[part] = {"x": _TouchesAFile(trap)}
    save_checkpoint(path, Checkpoint(task="criteria", step=1, **parts))
    told = refusal_of_evaluation(f"checkpoint={path}")
    assert "is refused: it holds objects other than tensors and plain values" in told
    assert not trap.exists()


@pytest.mark.parametrize("with_checksum", [False, True])
def test_a_bare_pickle_is_refused_and_not_run(
    refusal_of_evaluation: Refusal, tmp_path: Path, with_checksum: bool
) -> None:
    trap, path = tmp_path / "sprung", tmp_path / "evil.pt"
    content = pickle.dumps(_TouchesAFile(trap), protocol=2)
    digest = hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content + (_TAIL + digest if with_checksum else b""))
    told = refusal_of_evaluation(f"checkpoint={path}")
    assert ("is refused" if with_checksum else "its checksum is missing") in told
    assert not trap.exists()


def test_the_trap_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_TouchesAFile(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


def test_a_damaged_checkpoint_is_not_resumed_from(
    refusal_of_training: Refusal, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "copy" / "criteria" / "done"
    shutil.copytree(finished, run)
    last = run / "checkpoints" / "last_checkpoint.pt"
    last.write_bytes(last.read_bytes()[:-1])
    told = refusal_of_training(f"resume={run}", f"output_dir={tmp_path / 'copy'}")
    assert told.startswith(f"CheckpointError: {last} is truncated")


@pytest.mark.parametrize("key", ["model.pooling=cls", "model.head_layers=2", "task.loss=focal"])
def test_a_checkpoint_is_not_evaluated_as_another_model(
    refusal_of_evaluation: Refusal, checkpoint: Path, key: str
) -> None:
    told = refusal_of_evaluation(f"checkpoint={checkpoint}", key)
    assert f"`{key.split('=')[0]}`" in told


def test_more_tokens_than_the_encoder_has_positions_are_refused(
    refusal_of_training: Refusal,
) -> None:
    assert "`model.max_length` must be at most 128" in refusal_of_training("model.max_length=129")
