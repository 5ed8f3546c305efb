"""That figures of prediction lines are those of the evaluation that wrote the lines."""

import json

import pytest

from psy_agents_noaug.metrics.lines import line_samples
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.run.train import train


def figures(path, **options):
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {key: values[0] for key, values in line_samples(lines, **options).items()}


def expected(value):
    return pytest.approx(float("nan") if value is None else value, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("task_name", ["criteria", "evidence", "joint"])
def test_figures_of_lines_are_those_of_the_evaluation_and_of_its_baseline(make_config):
    result = train(make_config())
    directory = RunDirectory(result.directory)
    found = figures(directory.predictions_of("val"))
    assert {key for key in found if f"val/{key}" not in result.metrics} == set()
    for key, value in found.items():
        assert value == expected(result.metrics[f"val/{key}"]), key
    baseline = figures(directory.predictions_of("val", system="baseline_tfidf_lr"))
    reported = [key for key in baseline if f"val/baseline_tfidf_lr/{key}" in result.metrics]
    assert {"f1_macro", "evidence_iou_f1"} & set(reported)
    for key in reported:
        assert baseline[key] == expected(result.metrics[f"val/baseline_tfidf_lr/{key}"]), key


def test_lines_of_sentences_give_the_figures_of_whole_posts(make_config):
    result = train(make_config("data.unit=sentence"))
    prefix = "val/per_post/"
    thresholds = {
        key.split("/")[-2]: value
        for key, value in result.metrics.items()
        if key.startswith(f"{prefix}per_criterion/") and key.endswith("/threshold")
    }
    path = RunDirectory(result.directory).predictions_of("val")
    found = figures(path, post_thresholds=thresholds)
    assert found["per_post/f1_macro"] == expected(result.metrics["val/per_post/f1_macro"])
    key = "per_post/average_precision_macro"
    assert found[key] == expected(result.metrics[f"val/{key}"])


def test_older_lines_without_a_pairs_token_f1_do_not_give_it():
    ids = {"example_id": "p/A.1", "post_id": "p", "criterion_id": "A.1", "null_score_diff": None}
    line = {**ids, "evidence": [], "gold_evidence": [{"found": False}]}
    assert "evidence_token_f1" not in line_samples([line])
    assert (
        line_samples([{**line, "exact_match": 0.0, "token_f1": 0.0}])["evidence_token_f1"][0] == 0
    )
