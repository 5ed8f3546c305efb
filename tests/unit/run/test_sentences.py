"""What a run of `data.unit=sentence` judges, and what it says of it."""

import json
import logging
import shutil

import pandas as pd
import pytest
from sklearn.metrics import f1_score

from psy_agents_noaug import evaluate, train
from psy_agents_noaug.data.sentences import sentences
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.directory import differences
from psy_agents_noaug.run.evaluate import ANNOTATED_ONLY
from psy_agents_noaug.training.checkpoint import load_checkpoint

POSTS, ANNOTATIONS = "redsm5_posts.csv", "redsm5_annotations.csv"
SENTENCE = ["data.unit=sentence", "training.max_steps=1"]


def test_all_sentences_of_the_posts_are_judged_unless_it_is_asked_for_the_annotated(make_config):
    data = prepare_data(make_config("data.unit=sentence"))
    n_sentences = sum(len(sentences(post.text)) for post in data.corpus.posts)
    assert data.labels.n_pairs == 9 * n_sentences
    alone = prepare_data(make_config("data.unit=sentence", "data.sentences=annotated"))
    assert alone.labels.n_pairs == 9 * data.labels.n_annotations
    assert alone.labels.positives == data.labels.positives


@pytest.mark.parametrize("setting", ["data.sentences=annotated", "data.unannotated_pairs=drop"])
def test_every_table_of_annotated_sentences_says_so(setting, overrides):
    trained = train([*overrides, *SENTENCE, setting], verbose=False)
    for result in (trained, evaluate(trained, split="test", verbose=False)):
        assert result.summary.endswith(ANNOTATED_ONLY)
    figures = json.loads((trained.directory / "metrics.json").read_text())
    assert figures["val/annotated_sentences_only"] == 1
    assert figures["test/annotated_sentences_only"] == 1


@pytest.mark.parametrize("unit", ["post", "sentence"])
def test_tables_of_whole_posts_and_of_all_sentences_say_nothing_of_annotated_ones(unit, overrides):
    result = train([*overrides, *SENTENCE, f"data.unit={unit}"], verbose=False)
    assert ANNOTATED_ONLY not in result.summary
    assert "val/annotated_sentences_only" not in result.metrics


def test_annotations_whose_sentence_is_unknown_are_counted_in_one_warning(
    make_config, tiny_corpus, tmp_path, caplog
):
    folder = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, folder)
    lines = (folder / ANNOTATIONS).read_text().splitlines()
    lines.append("p01,p01_9,xylophone quartz,DEPRESSED_MOOD,1,made up")
    (folder / ANNOTATIONS).write_text("\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING):
        data = prepare_data(make_config("data.unit=sentence", f"data.dir={folder}"))
    n_left_out = sum(
        len(sentences(post.text)) for post in data.corpus.posts if post.post_id == "p01"
    )
    assert "1 annotations have no sentence" in caplog.text
    assert f"without {n_left_out} pairs whose label is therefore unknown" in caplog.text
    assert data.report()["labels"]["pairs_of_unknown_label"] == n_left_out


def test_a_sentence_that_many_posts_share_is_no_duplicate_but_a_copied_post_is(
    make_config, tiny_corpus, tmp_path
):
    folder = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, folder)
    header, *posts = (folder / POSTS).read_text().splitlines()
    posts[20] = "p20," + posts[2].split(",", 1)[1]
    (folder / POSTS).write_text("\n".join([header, *posts]) + "\n")
    data = prepare_data(make_config("data.unit=sentence", f"data.dir={folder}"))
    assert ("p02", "train", "p20", "val") in data.duplicates.exact
    post_ids = {post.post_id for post in data.corpus.posts}
    assert all({a, b} <= post_ids for a, _, b, *_ in data.duplicates.exact)


def test_the_choice_of_sentences_is_a_difference_only_where_sentences_are_judged(make_config):
    recorded = make_config().model_dump()
    del recorded["data"]["sentences"]
    assert differences(recorded, make_config()) == []
    recorded["data"]["unit"] = "sentence"
    assert (
        differences(recorded, make_config("data.unit=sentence", "data.sentences=annotated")) == []
    )
    assert differences(recorded, make_config("data.unit=sentence")) == [
        "`data.sentences` was 'annotated', but is 'all' now"
    ]


def test_figures_of_whole_posts_are_those_of_the_most_probable_sentences(overrides):
    trained = train([*overrides, *SENTENCE, "training.epochs=1"], verbose=False)
    figures = evaluate(trained, split="test", verbose=False).metrics
    rule = load_checkpoint(trained.directory / "checkpoints" / "best_checkpoint.pt").decision_rule
    lines = (trained.directory / "predictions" / "test.jsonl").read_text().splitlines()
    table = pd.DataFrame(map(json.loads, lines))
    posts = table.groupby(["criterion_id", "post_id"])[["label", "probability"]].max()
    scores = {}
    for criterion_id, own in posts.groupby(level="criterion_id"):
        if 0 < own["label"].sum() < len(own):
            decided = own["probability"] >= rule["posts"]["thresholds"][criterion_id]
            scores[criterion_id] = f1_score(own["label"], decided)
    assert len(scores) > 1
    assert figures["test/per_post/f1_macro"] == pytest.approx(sum(scores.values()) / len(scores))
    for criterion_id, score in scores.items():
        found = figures[f"test/per_post/per_criterion/{criterion_id}/f1"]
        assert found == pytest.approx(score)
    gain = figures["test/baseline_tfidf_lr/per_post/f1_macro_gain"]
    baseline = figures["test/baseline_tfidf_lr/per_post/f1_macro"]
    assert gain == pytest.approx(figures["test/per_post/f1_macro"] - baseline)
