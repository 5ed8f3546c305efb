"""A training on the labels of two annotators."""

import csv
import json
import logging
import statistics

import numpy as np
import pytest

from psy_agents_noaug import cross_validate
from psy_agents_noaug.comparison.compare import compare_systems
from psy_agents_noaug.comparison.systems import read_systems
from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.data.merging import MergeRule
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.metrics.tables import with_interval
from psy_agents_noaug.run.data import label_corpus, prepare_data
from psy_agents_noaug.run.train import train
from psy_agents_noaug.tasks.criteria.annotators import annotator_metrics


@pytest.fixture(scope="module")
def two_annotators(tiny_corpus, tmp_path_factory):
    """The tiny corpus, where the second annotator says the opposite of every fifth row."""
    folder = tmp_path_factory.mktemp("annotators")
    for name in ("redsm5_posts.csv", "splits.json"):
        (folder / name).write_bytes((tiny_corpus / name).read_bytes())
    with (tiny_corpus / "redsm5_annotations.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with (folder / "redsm5_annotations.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], "annotator_id"])
        writer.writeheader()
        for number, one in enumerate(rows):
            other = str(1 - int(one["status"])) if number % 5 == 0 else one["status"]
            writer.writerows(
                [{**one, "annotator_id": "ann"}, {**one, "annotator_id": "bo", "status": other}]
            )
    return folder


def config_of(make_config, folder, *more):
    return make_config(f"data.dir={folder}", *more)


def labelled(folder, rows, *settings):
    """Label a corpus of two sentences a post, with rows of annotations."""
    posts = [(post, "I cry. We ate soup.") for post in sorted({row[0] for row in rows})]
    columns = ("post_id", "criterion_id", "status", "evidence_text", "annotator_id")
    for name, head, cells in (
        ("posts.csv", ("post_id", "text"), posts),
        ("annotations.csv", columns, rows),
    ):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([head, *cells])
    own = ["data=tables", f"data.dir={folder}", "data.posts=posts.csv"]
    own += ["data.annotations=annotations.csv", *settings]
    return label_corpus(load_train_config("criteria", own))


def test_under_a_named_annotator_agreement_is_that_of_the_others_on_all_that_they_have_seen(
    tmp_path,
):
    of_two = [
        (f"p{number}", "A.1", int(number % divisor == 0), "", annotator)
        for number in range(12)
        for annotator, divisor in (("ada", 2), ("ben", 3))
    ]
    of_gold = [(f"p{number}", "A.1", int(number % 2 == 0), "", "gold") for number in range(4)]
    without = labelled(tmp_path, of_two, "data.merge=majority").annotators
    found = labelled(tmp_path, [*of_two, *of_gold], "data.merge=annotator:gold").annotators
    assert found.seen == {"ada": 108, "ben": 108, "gold": 36}
    assert (found.n_shared, found.n_disagreements, found.n_not_seen) == (108, 6, 72)
    assert found.agreement == without.agreement
    assert "were seen by two or more besides gold; these disagree on 6" in found.summary()
    assert "Agreement leaves out gold, who may have adjudicated their labels." in found.summary()


def test_sentences_of_a_post_and_criterion_with_a_met_label_without_a_place_are_no_agreement(
    tmp_path,
):
    rows = [
        ("p1", "A.1", 1, "I cry.", "ada"),
        ("p1", "A.1", 1, "", "ben"),
        ("p1", "A.1", 0, "I cry.", "cleo"),
        ("p2", "A.1", 1, "I cry.", "ada"),
        ("p2", "A.1", 1, "I cry.", "ben"),
    ]
    data = labelled(tmp_path, rows, "data.merge=any", "data.unit=sentence")
    found = data.annotators
    # Of 2 sentences x 9 criteria x 2 posts one pair is not known, and one left out.
    assert (found.n_pairs, found.n_partial, found.n_shared) == (35, 1, 34)
    assert found.n_disagreements == 0
    assert found.agreement.values["per_criterion/A.1/n_pairs"] == 2
    assert "Agreement leaves out 1 pairs of sentences" in found.summary()
    metrics = annotator_metrics(
        data.examples,
        np.zeros(len(data.examples), dtype=bool),
        rule=MergeRule.of("any"),
        criteria=[criterion.criterion_id for criterion in data.corpus.criteria],
    )
    assert metrics["annotators/n_pairs"] == 34


def test_the_log_counts_disagreements_of_annotators_and_no_contradictions(
    make_config, two_annotators, caplog
):
    with caplog.at_level(logging.INFO):
        prepare_data(config_of(make_config, two_annotators, "data.merge=unanimous"))
    (line,) = [message for message in caplog.messages if message.startswith("Read ")]
    assert "not met by the merged label" in line
    assert "6 on which annotators disagree" in line
    assert "contradictions" not in line


def test_tables_say_that_annotators_are_held_against_the_named_one(make_config, two_annotators):
    merged = config_of(make_config, two_annotators, "data.merge=annotator:bo", "training.epochs=1")
    summary = train(merged).summary
    assert "annotators, each against bo" in summary
    assert "1 annotators on 72 pairs, each against the labels of bo;" in summary


def test_a_run_says_whose_labels_it_has_and_how_well_annotators_find_them(
    make_config, two_annotators
):
    config = config_of(make_config, two_annotators, "data.merge=any", "training.epochs=1")
    result = train(config)
    report = json.loads((result.directory / "alignment.json").read_text())["annotators"]
    # Of 270 pairs the annotators differ on six.
    assert (report["n_shared"], report["n_disagreements"]) == (270, 6)
    assert report["rule"] == "any"
    metrics = result.metrics
    assert metrics["val/labels_merged_by"] == "any"
    # Each of two annotators on each of the 72 pairs of val; the other's label is the reference.
    assert metrics["val/annotators/n_votes"] == 144
    assert 0 < metrics["val/annotators/f1_micro"] < 1
    gain = metrics["val/annotators/model/f1_macro"] - metrics["val/annotators/f1_macro"]
    assert metrics["val/annotators/f1_macro_gain"] == pytest.approx(gain)
    assert "annotators, each against the others" in result.summary
    assert "merged by `data.merge=any`" in result.summary
    found = read_systems([str(result.directory), "baseline:tfidf_lr"], split="val")
    said = f"f1_macro {with_interval(metrics, 'val/annotators/f1_macro')}"
    assert said in compare_systems(found, split="val").notes[-1]


def test_a_cross_validation_has_the_figures_of_annotators_beside_its_own(overrides, two_annotators):
    own = [item for item in overrides if not item.startswith(("data.splits", "training.epochs"))]
    own += [f"data.dir={two_annotators}", "data.merge=any", "training.epochs=1"]
    own.append("data.split_fractions=[0.5,0.25,0.25]")
    result = cross_validate(own, folds=2, verbose=False)
    folds = [
        json.loads((result.directory / f"fold-{number}-seed-42/metrics.json").read_text())
        for number in (1, 2)
    ]
    for key in ("annotators/f1_macro", "annotators/model/f1_macro"):
        mean = statistics.fmean(figures[f"test/{key}"] for figures in folds)
        assert result.metrics[f"cv/mean_of_runs/{key}"] == pytest.approx(mean)
        assert f"\n{key} " in result.summary


def test_soft_labels_are_the_target_of_training_alone(make_config, two_annotators, weights_of):
    own = config_of(make_config, two_annotators, "data.merge=any", "training.epochs=1")
    soft = config_of(
        make_config,
        two_annotators,
        "data.merge=any",
        "data.soft_labels=true",
        "training.epochs=1",
        "run_name=soft",
    )
    hard_run, soft_run = train(own), train(soft)
    assert weights_of(hard_run) != weights_of(soft_run)
    for key in ("val/n_positive", "val/annotators/f1_micro"):
        assert hard_run.metrics[key] == soft_run.metrics[key]


def test_the_posts_of_a_split_do_not_depend_on_the_rule(make_config, two_annotators):
    found = [
        prepare_data(
            config_of(make_config, two_annotators, "data.splits=null", f"data.merge={rule}")
        )
        for rule in ("any", "unanimous", "annotator:bo")
    ]
    assert len({data.splits.fingerprint for data in found}) == 1
    assert len({data.corpus.fingerprint for data in found}) == 1


@pytest.mark.parametrize("task_name", ["evidence"])
def test_evidence_of_annotators_stands_beside_that_of_the_model(make_config, two_annotators):
    result = train(config_of(make_config, two_annotators, "data.merge=any", "training.epochs=1"))
    metrics = result.metrics
    # Of the same words both mark the same sentence; where one says not met it has no evidence.
    assert 0 < metrics["val/annotators/evidence_iou_f1"] < 1
    gain = (
        metrics["val/annotators/model/evidence_iou_f1"] - metrics["val/annotators/evidence_iou_f1"]
    )
    assert metrics["val/annotators/evidence_iou_f1_gain"] == pytest.approx(gain)
    assert "annotators, each against the others" in result.summary


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("criteria", ["data.merge=most"], "must be any, majority, unanimous or annotator:ID"),
        ("criteria", ["data.soft_labels=true"], "`data.soft_labels` needs `data.merge`"),
        ("criteria", ["data.merge=any", "data.corrections=c.csv"], "give one of them"),
        ("joint", ["data.merge=any", "data.soft_labels=true"], "no target of the joint task"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(overrides_for, tmp_path, task, more, message):
    with pytest.raises(ConfigError, match=message):
        load_train_config(task, [*overrides_for(tmp_path, task), *more])
