"""Post text stays in the data files: a word planted in all of them turns up nowhere else."""

import csv
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from psy_agents_noaug.comparison.write import compare_and_write
from psy_agents_noaug.training.checkpoint import Checkpoint, save_checkpoint

# In no text that the tiny tokenizer was trained on, so that checkpoints can be searched as well.
PLANTED = "quavimorthle"
SENTENCE = f"Nobody but {PLANTED} knows how I feel."
POSTS, ANNOTATIONS = "redsm5_posts.csv", "redsm5_annotations.csv"
Rows = list[dict[str, str]]

# One process for all of it, as imports take most of the time. It ends in a bug's traceback.
PROGRAM = """
import json, sys
from psy_agents_noaug.cli import main
from psy_agents_noaug.tasks.criteria.task import CriteriaTask

plan = json.loads(sys.argv[1])
codes = [main(["train", f"task={task}", *argv]) for task, argv in plan["train"]]
codes += [main(["eval", f"task={task}", *argv]) for task, argv in plan["evaluate"]]
codes += [main(["cv", "task=criteria", *argv]) for argv in plan["cross-validate"]]
codes += [main(["train", "task=criteria", *argv]) for argv in plan["refuse"]]
print("exit codes", codes)
sys.stdout.flush()

def crash(self, model, batch):
    texts = [example.text for example in self.source("train").examples]
    raise ZeroDivisionError(f"a bug, with {len(texts)} texts at hand")

CriteriaTask.loss = crash
main(["train", "task=criteria", *plan["crash"]])
"""


def _read(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def corpora(tiny_corpus: Path, tmp_path: Path) -> dict[str, Path]:
    """The tiny corpus with the planted word in every text, and copies that must be refused."""
    planted = tmp_path / "corpora" / "planted"
    shutil.copytree(tiny_corpus, planted)
    posts, annotations = _read(planted / POSTS), _read(planted / ANNOTATIONS)
    for number, (post, annotation) in enumerate(zip(posts, annotations, strict=True)):
        post["text"] = f"{SENTENCE} {post['text']}"
        # Found verbatim, found by similarity, and lost.
        wordings = (f"{SENTENCE} ", SENTENCE.replace("knows", "know"), f"{PLANTED} " * 9)
        annotation["sentence_text"] = wordings[number % 3]
        annotation["explanation"] = f"They say that {PLANTED} knows."
    posts[20]["text"] = posts[2]["text"]  # a duplicate across splits is reported
    _write(planted / POSTS, posts)
    _write(planted / ANNOTATIONS, annotations)

    shifted = planted.with_name("shifted")
    shutil.copytree(planted, shifted)
    for row, column in enumerate(("post_id", "DSM5_symptom", "status", "sentence_id")):
        annotations[row][column] = SENTENCE
    posts[5]["post_id"] = SENTENCE
    posts[6]["post_id"] = SENTENCE
    posts[7]["text"] = f"{PLANTED}\0{PLANTED}"
    _write(shifted / POSTS, posts)
    _write(shifted / ANNOTATIONS, annotations)

    torn = planted.with_name("torn")
    shutil.copytree(planted, torn)
    with (torn / POSTS).open("a") as file:
        file.write(f'p77,"{SENTENCE}",{SENTENCE}\n')
    (torn / ANNOTATIONS).write_text(f"{SENTENCE}\n{SENTENCE}\n")

    latin = planted.with_name("latin")
    shutil.copytree(planted, latin)
    (latin / POSTS).write_bytes(f"post_id,text\np00,{SENTENCE} é\n".encode("latin-1"))
    (latin / "splits.json").write_text(f'{{"{SENTENCE}')
    return {path.name: path for path in (planted, shifted, torn, latin)}


def _places(folder: Path, word: str) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and word.encode() in path.read_bytes()
    )


@pytest.mark.slow
def test_no_text_of_a_post_or_annotation_leaves_the_data_files(
    corpora: dict[str, Path], overrides_for: Callable[..., list[str]], tmp_path: Path
) -> None:
    output_dir = tmp_path / "outputs"

    def fast(task: str = "criteria") -> list[str]:
        replaced = ("data.dir=", "tracking=", "training.epochs=")
        kept = [x for x in overrides_for(output_dir, task) if not x.startswith(replaced)]
        return [*kept, "training.epochs=1"]

    planted = f"data.dir={corpora['planted']}"
    tasks = ("criteria", "evidence", "joint")
    best = {
        task: output_dir / task / "planted" / "checkpoints" / "best_checkpoint.pt" for task in tasks
    }
    plan = {
        "train": [
            *([task, [*fast(task), planted, "run_name=planted"]] for task in tasks),
            [
                "criteria",
                [
                    *(word for word in fast() if word != "report=false"),
                    *(planted, "run_name=sentences", "data.unit=sentence", "tracking=none"),
                ],
            ],
        ],
        "evaluate": [
            *([task, [f"checkpoint={best[task]}"]] for task in ("criteria", "evidence")),
            ["joint", [f"checkpoint={best['joint']}", "report=true"]],
            ["criteria", [f"checkpoint={best['criteria']}", "split=train"]],
        ],
        "cross-validate": [
            [
                *(word for word in fast() if not word.startswith(("report=", "data.splits="))),
                *(planted, "folds=2", "data.split_fractions=[0.5,0.25,0.25]"),
            ]
        ],
        "refuse": [
            [*fast(), f"data.dir={corpora[name]}", f"run_name={name}"]
            for name in ("shifted", "torn", "latin")
        ],
        "crash": [*fast(), planted, "run_name=crashed"],
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(plan)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=tmp_path,
    )
    # All of it happened.
    assert "exit codes [0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2]" in done.stdout, done.stderr
    assert done.returncode == 1
    assert "ZeroDivisionError: a bug, with" in done.stderr
    assert "The evidence of 10 annotations is not in their posts" in done.stderr
    assert "exact duplicates of a text in different splits" in done.stderr
    assert "not shown>" in done.stderr
    assert "must not hold NUL" in done.stderr
    for task in tasks:
        run = str(output_dir / task / "planted")
        compare_and_write(
            [run, "baseline:tfidf_lr"], split="test", output=output_dir / f"{task}-compared"
        )
    searched = {path.name for path in output_dir.rglob("*") if path.is_file()}
    assert searched >= {"mlflow.db", "best_checkpoint.pt", "test.jsonl", "alignment.json"}
    assert searched >= {"report.html", "labels_test.csv", "roc_test.pdf"}
    assert searched >= {"out_of_fold.jsonl", "labels_cv.csv", "roc_cv.pdf"}
    assert searched >= {"test.baseline_tfidf_lr.jsonl", "comparison.html", "posts.csv"}

    # The word is where it was planted, and nowhere else, this folder's other files included.
    assert {Path(place).parts[:2] for place in _places(tmp_path, PLANTED)} == {
        ("corpora", name) for name in corpora
    }
    assert len(_places(tmp_path / "corpora", PLANTED)) == 2 * len(corpora) + 1
    assert PLANTED not in done.stdout
    assert PLANTED not in done.stderr


def test_the_search_for_the_word_finds_it_in_a_checkpoint_and_a_database(tmp_path: Path) -> None:
    metadata = {"encoder_files": {"tokenizer.json": f'{{"vocab": ["{PLANTED}"]}}'}}
    save_checkpoint(
        tmp_path / "leaky.pt",
        Checkpoint(task="criteria", step=0, config={}, metadata=metadata, weights={}),
    )
    with sqlite3.connect(tmp_path / "leaky.db") as database:
        database.execute("create table tags (value text)")
        database.execute("insert into tags values (?)", (SENTENCE,))
    database.close()
    assert _places(tmp_path, PLANTED) == ["leaky.db", "leaky.pt"]
