"""What a report says of authors, subgroups, another prevalence, and of too little data."""

import csv
import json
import shutil

import pytest

from psy_agents_noaug.config.schema import EvaluateConfig
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.evaluate import evaluate
from psy_agents_noaug.run.train import train


@pytest.fixture
def corpus(tiny_corpus, tmp_path):
    """The tiny corpus, with an author for every two posts, and columns of the posts."""
    folder = shutil.copytree(tiny_corpus, tmp_path / "corpus")
    table = folder / "redsm5_posts.csv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["group_id"] = f"author{number // 2}"
        row["gender"] = "w" if number % 3 else "m"
        row["number"] = str(number)
        row["title"] = "My husband Karl left me" if number % 2 else "No sleep"
        row["a/b"] = row["length"] = "x"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_authors_are_the_units_of_a_report_and_stand_in_every_prediction_line(make_config, corpus):
    result = train(make_config(f"data.dir={corpus}", "data.subgroups=[gender]"))
    assert (result.metrics["val/n_posts"], result.metrics["val/n_groups"]) == (8, 4)
    found = lines(result.directory / "predictions" / "val.jsonl")
    assert {line["group_id"] for line in found} == {f"author{k}" for k in range(7, 11)}
    pairs = [result.metrics[f"val/subgroup/gender/{value}/n_pairs"] for value in ("w", "m")]
    assert sum(pairs) == result.metrics["val/n_pairs"] == 72
    assert "gender" in result.summary


def test_predictive_values_are_given_at_the_prevalence_asked_for(make_config, corpus):
    run = train(make_config(f"data.dir={corpus}")).directory
    chosen = EvaluateConfig(checkpoint=str(run), split="test", prevalence=0.01)
    found = evaluate(chosen, task_name="criteria", explicit={})
    assert found.metrics["test/prevalence"] == 0.01
    assert "test/per_criterion/A.1/precision_at_prevalence" in found.metrics
    assert "a share of 0.01 of the judged texts" in found.summary


@pytest.mark.parametrize(
    ("column", "rule"),
    [
        ("number", "at most 20 different values to make subgroups .it has 30"),
        ("text", "cannot divide posts into subgroups"),
        ("age", "column age: is missing"),
        ("length", "has the name of a subgroup that every report has"),
        ("title", "must have a name and values of at most three words"),
        ("a/b", "must have a name and values of at most three words"),
    ],
)
def test_a_column_that_makes_no_subgroups_is_refused(make_config, corpus, column, rule):
    with pytest.raises(DataError, match=rule):
        prepare_data(make_config(f"data.dir={corpus}", f"data.subgroups=[{column}]"))


def test_pairs_of_one_class_are_refused_with_the_remedy(make_config, corpus):
    table = corpus / "redsm5_annotations.csv"
    rows = [
        row
        for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines())
        if row["status"] == "1"
    ]
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(DataError) as caught:
        train(make_config(f"data.dir={corpus}", "data.unannotated_pairs=drop"))
    assert "pairs of train are met" in str(caught.value)
    assert "pairs of val are met" in str(caught.value)
    assert "`data.unannotated_pairs=negative`" in str(caught.value)


def test_duplicates_are_dropped_from_train_where_sentences_are_judged(make_config, corpus):
    table = corpus / "redsm5_posts.csv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    own = "A long story of my days that nobody else has told before in these words. " * 3
    rows[0]["text"] = own + rows[0]["text"]
    rows[22]["text"] = own + rows[0]["text"]  # a post of test that quotes one of train
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    data = prepare_data(
        make_config(
            f"data.dir={corpus}",
            "data.unit=sentence",
            "data.sentences=all",
            "data.duplicates=drop_from_train",
        )
    )
    assert "p00" in data.dropped
    assert "p00" not in {example.post_id for example in data.examples["train"]}


def test_few_authors_in_val_or_test_are_warned_of(make_config, corpus, caplog):
    prepare_data(make_config(f"data.dir={corpus}"))
    assert "val has 4 authors or posts, fewer than 20: the thresholds" in caplog.text
    assert "test has 4 authors or posts, fewer than 20: its figures" in caplog.text
