"""Posts that training has seen, in the evaluation's split or in the corpus's own val and test."""

import csv
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from psy_agents_noaug.config.schema import EvaluateConfig
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.evaluate import evaluate
from psy_agents_noaug.run.train import train
from psy_agents_noaug.training.checkpoint import load_checkpoint, save_checkpoint

SENTENCE = "On the {n} day of my stay in house {n} we went down {n} steps to the water and sang. "


@pytest.fixture
def corpora(tiny_corpus, tmp_path):
    """Return a function from how posts are edited to a copy of the corpus whose posts are unlike."""

    def copy(name, edit=lambda number, text: text, authors=False):
        folder = shutil.copytree(tiny_corpus, tmp_path / name)
        table = folder / "redsm5_posts.csv"
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for number, row in enumerate(rows):
            own = "".join(SENTENCE.format(n=f"{number}x{k}") for k in range(4))
            row["text"] = edit(number, f"{own}{row['text']}")
            if authors:
                row["group_id"] = f"author{number}"
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return folder

    return copy


def swapped(folder: Path) -> Path:
    """Let test have the posts that train had."""
    path = folder / "splits.json"
    splits = json.loads(path.read_text())
    path.write_text(json.dumps({**splits, "train": splits["test"], "test": splits["train"]}))
    return folder


def evaluation_of(run, folder):
    checkpoint = str(run.directory / "checkpoints" / "best_checkpoint.pt")
    chosen = EvaluateConfig(checkpoint=checkpoint, split="test")
    return evaluate(chosen, task_name="criteria", explicit={"data.dir": str(folder)})


@pytest.mark.slow
def test_another_corpus_of_the_training_posts_with_an_edit_is_said_before_its_figures(
    make_config, corpora, caplog
):
    run = train(make_config(f"data.dir={corpora('first', authors=True)}"))
    edited = swapped(corpora("second", lambda _, text: f"{text} Edit: thanks", authors=True))
    with caplog.at_level(logging.INFO):
        metrics = evaluation_of(run, edited).metrics
    told = [record.getMessage() for record in caplog.records]
    (near,) = [n for n, line in enumerate(told) if "14 of 14 posts of test are near dup" in line]
    assert told[near].endswith("p00, p01, p02, p03, p04, p05, p06, p07, p08, p09 and 4 more")
    assert near < next(n for n, line in enumerate(told) if line.startswith("Predicted test"))
    assert any("14 of 14 posts of test have authors" in line for line in told)
    assert metrics["test/n_near_duplicates_of_train"] == 14
    assert metrics["test/n_posts_by_authors_of_train"] == 14

    caplog.clear()
    unlike = corpora("third", lambda number, _: SENTENCE.format(n=f"{number}y"))
    metrics = evaluation_of(run, swapped(unlike)).metrics
    assert metrics["test/n_near_duplicates_of_train"] == 0
    assert metrics["test/n_posts_by_authors_of_train"] == 0
    assert not [r for r in caplog.records if "seen" in r.getMessage()]

    own = evaluation_of(run, run_folder(run)).metrics
    assert "test/n_near_duplicates_of_train" not in own


def run_folder(run) -> str:
    path = run.directory / "checkpoints" / "best_checkpoint.pt"
    return str(load_checkpoint(path).config["data"]["dir"])


def test_a_checkpoint_without_what_near_duplicates_need_says_so(
    make_config, corpora, caplog, tmp_path
):
    run = train(make_config(f"data.dir={corpora('first')}"))
    path = run.directory / "checkpoints" / "best_checkpoint.pt"
    checkpoint = load_checkpoint(path)
    assert isinstance(checkpoint.metadata["seen_posts"]["bits"], torch.Tensor)
    del checkpoint.metadata["seen_posts"]
    checkpoint.metadata["seen_texts"] = []
    save_checkpoint(path, checkpoint)
    edited = swapped(corpora("second", lambda _, text: f"{text} Edit: thanks"))
    metrics = evaluation_of(run, edited).metrics
    assert "test/n_near_duplicates_of_train" not in metrics
    assert "with an edit, in a quotation, or with other HTML entities" in caplog.text


def test_training_posts_that_val_or_test_has_too_are_left_out_on_request(
    make_config, corpora, caplog
):
    texts = {}

    def edit(number, text):
        texts[number] = text
        if number in (14, 22):  # the first of val and the first of test
            return f"{texts[number - 14]} Edit: thanks"
        return text

    folder = corpora("first", edit)
    warned = prepare_data(make_config(f"data.dir={folder}", "data.unit=post"))
    assert warned.duplicates.post_ids("train") == ["p00", "p08"]
    assert warned.dropped == []
    caplog.clear()
    config = make_config(f"data.dir={folder}", "data.unit=post", "data.duplicates=drop_from_train")
    with caplog.at_level(logging.INFO):
        prepared = prepare_data(config)
    assert prepared.dropped == ["p00", "p08"]
    trained_on = {example.post_id for example in prepared.examples["train"]}
    assert trained_on == set(prepared.splits.train) - {"p00", "p08"}
    assert prepared.examples["val"] == warned.examples["val"]
    assert prepared.examples["test"] == warned.examples["test"]
    assert prepared.counts["train"]["posts"] == 12
    assert prepared.report()["dropped_from_train"] == {"n": 2, "ids": ["p00", "p08"]}
    assert "2 texts are left out of training" in caplog.text
    seen = {post.post_id for post in prepared.posts("train", "val")}
    assert {"p00", "p08"}.isdisjoint(seen)


def test_a_training_that_would_have_no_posts_left_is_refused(make_config, corpora):
    folder = corpora("first", lambda number, text: SENTENCE.format(n="one"))
    with pytest.raises(DataError, match="leaves nothing to train on"):
        prepare_data(
            make_config(f"data.dir={folder}", "data.unit=post", "data.duplicates=drop_from_train")
        )
