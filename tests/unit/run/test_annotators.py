"""A training on the labels of two annotators."""

import csv
import json
import statistics

import pytest

from psy_agents_noaug import cross_validate
from psy_agents_noaug.comparison.compare import compare_systems
from psy_agents_noaug.comparison.systems import read_systems
from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.metrics.tables import with_interval
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.train import train


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
