import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from psy_agents_noaug.metrics.classification import PairPredictions
from psy_agents_noaug.metrics.held_out import held_out_labels, held_out_spans, held_out_table
from psy_agents_noaug.metrics.spans import SpanPredictions
from psy_agents_noaug.metrics.values import Metrics

IDS = ("A.8", "A.9")


def labels_and_scores(seed, *, gap, n=60):
    """Predictions of 60 posts about each of two criteria; the higher the gap, the better."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(n) % 3 == 0, 2).astype(np.int64)
    return PairPredictions(
        labels=labels,
        probabilities=np.clip(rng.normal(0.4 + gap * labels, 0.1), 0, 1),
        criterion_ids=np.repeat(IDS, n),
        group_ids=np.array([f"p{number}" for number in (*range(n), *range(n))]),
    )


GOOD, POOR = labels_and_scores(0, gap=0.3), labels_and_scores(1, gap=0.02)


def flat(metrics: Metrics) -> dict:
    return {**metrics.values, **{f"{k}_undefined": v for k, v in metrics.undefined.items()}}


def figures(model=GOOD, baseline=POOR, criteria=IDS):
    found = held_out_labels(
        model, baseline, criteria=criteria, threshold=0.55, baseline_threshold=0.45
    )
    return flat(found)


def test_figures_are_scikit_learns_on_the_pairs_of_each_criterion():
    found = figures()
    for criterion in IDS:
        for prefix, pairs, threshold in (
            (criterion, GOOD, 0.55),
            (f"{criterion}/baseline_tfidf_similarity", POOR, 0.45),
        ):
            own = pairs.take(pairs.criterion_ids == criterion)
            assert found[f"{prefix}/n_pairs"] == found[f"{prefix}/n_groups"] == 60
            assert found[f"{prefix}/n_positive"] == 20
            assert found[f"{prefix}/threshold"] == threshold
            auroc = roc_auc_score(own.labels, own.probabilities)
            assert found[f"{prefix}/auroc"] == pytest.approx(auroc)
            precision = average_precision_score(own.labels, own.probabilities)
            assert found[f"{prefix}/average_precision"] == pytest.approx(precision)
            f1 = f1_score(own.labels, own.probabilities >= threshold)
            assert found[f"{prefix}/f1"] == pytest.approx(f1)
            for name in ("auroc", "average_precision", "f1", "precision", "recall"):
                low, high = (found[f"{prefix}/{name}_ci_{end}"] for end in ("low", "high"))
                assert low <= found[f"{prefix}/{name}"] <= high


def test_the_difference_is_paired_over_the_same_posts():
    found = figures()
    key = "A.8/baseline_tfidf_similarity/auroc"
    assert found[f"{key}_gain"] == pytest.approx(found["A.8/auroc"] - found[key])
    assert 0 < found[f"{key}_gain_ci_low"] < found[f"{key}_gain"] < found[f"{key}_gain_ci_high"]
    same = figures(GOOD, GOOD)
    assert same[f"{key}_gain"] == 0
    assert same[f"{key}_gain_ci_low"] is None


def test_a_criterion_without_pairs_or_without_met_ones_has_a_reason_for_each_figure():
    unmet = PairPredictions(
        np.zeros(60, dtype=np.int64), *(a[:60] for a in list(vars(GOOD).values())[1:])
    )
    found = figures(unmet, unmet)
    assert found["A.8/auroc_undefined"] == "no positive labels"
    assert found["A.9/auroc_undefined"] == "no pairs"
    assert found["A.9/n_pairs"] == 0
    undefined = {key for key, value in found.items() if value is None}
    reasons = {key for key, value in found.items() if isinstance(value, str)}
    assert reasons == {f"{key}_undefined" for key in undefined}


def test_the_table_says_by_which_criterion_the_model_is_better():
    model = PairPredictions(
        **vars(GOOD) | {"probabilities": np.r_[GOOD.probabilities[:60], POOR.probabilities[60:]]}
    )
    table = held_out_table(figures(model), {"A.8": "Concentration", "A.9": "Death"})
    lines = table.splitlines()
    assert lines[0].split()[-6:] == ["name", "system", "met", "AUROC", "AP", "F1"]
    assert [line.split()[0] for line in lines[2:6:2]] == list(IDS)
    assert sum("TF-IDF similarity  " in line for line in lines) == 2
    better = "A.8: By AUROC the model is better than TF-IDF similarity (paired 95 % intervals)."
    assert better in lines
    assert "A.9: By AUROC the model is NOT shown to be better than: TF-IDF similarity" in table


def spans(scores, *, n=6):
    """Each second post has the evidence `aa`; a span on it is predicted with these scores."""
    return SpanPredictions(
        texts=["aa bb"] * n,
        gold=[[(0, 2)] if number % 2 else [] for number in range(n)],
        starts=np.zeros((n, 1), dtype=np.int64),
        ends=np.full((n, 1), 2),
        scores=np.asarray(scores, dtype=np.float64)[:, None],
        criterion_ids=np.array(["A.8"] * n),
        group_ids=np.array([f"p{number}" for number in range(n)]),
    )


def test_evidence_is_counted_at_the_threshold_that_is_given():
    model, baseline = spans([-1, 1, -1, 1, 1, -1]), spans([1] * 6)
    options = {"criteria": IDS, "threshold": 0.0, "baseline_threshold": 0.0}
    found = flat(held_out_spans(model, baseline, **options))
    # Of three predicted spans two are right, and of three gold spans two are found.
    assert found["A.8/evidence_iou_f1"] == pytest.approx(2 / 3)
    assert found["A.8/evidence_iou_precision"] == pytest.approx(2 / 3)
    key = "A.8/baseline_tfidf_similarity/evidence_iou_f1"
    assert found[key] == pytest.approx(2 * 0.5 / 1.5)
    assert found[f"{key}_gain"] == pytest.approx(0)
    assert (found["A.8/n_answerable"], found["A.8/evidence_n_pairs"]) == (3, 6)
    assert found["A.9/evidence_iou_f1_undefined"] == "no pairs"
    table = held_out_table(found, {"A.8": "Concentration", "A.9": "Death"})
    assert table.splitlines()[0].split()[-2:] == ["IOU", "F1"]
    assert "A.8: By IOU F1 the model is NOT shown to be better than: TF-IDF similarity" in table
