import itertools
import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from psy_agents_noaug.metrics.classification import (
    PairPredictions,
    classification_metrics,
    cutoffs_at_specificity,
    expected_calibration_error,
    fit_thresholds,
    recall_at_cutoffs,
    values_at_prevalence,
)

CRITERIA = ("A.1", "A.2", "A.3")
HALF = dict.fromkeys(CRITERIA, 0.5)


def pairs(rows, groups=None):
    """Predictions from (criterion, label, probability) rows; each its own post unless said."""
    return PairPredictions(
        labels=np.array([row[1] for row in rows], dtype=np.int64),
        probabilities=np.array([row[2] for row in rows], dtype=np.float64),
        criterion_ids=np.array([row[0] for row in rows], dtype=object),
        group_ids=np.array(groups or [f"p{i}" for i in range(len(rows))], dtype=object),
    )


def random_pairs(seed, *, n_posts=30, decimals=1):
    rng = np.random.default_rng(seed)
    labels = rng.random((n_posts, 3)) < (0.3, 0.5, 0.1)
    noisy = np.clip(rng.normal(0.35 + 0.3 * labels, 0.2), 0, 1).round(decimals)
    rows = [
        (criterion, int(labels[post, column]), noisy[post, column])
        for post, (column, criterion) in itertools.product(range(n_posts), enumerate(CRITERIA))
    ]
    return pairs(rows, [f"p{i // 3}" for i in range(len(rows))])


def take(predictions, rows):
    return PairPredictions(**{name: array[rows] for name, array in vars(predictions).items()})


# Few distinct scores, so that ties and single-class criteria are common.
ROW = st.tuples(
    st.sampled_from(CRITERIA),
    st.integers(0, 1),
    st.sampled_from((0.0, 0.1, 0.25, 0.5, 0.7, 1.0)) | st.floats(0, 1),
)
CUTOFFS = st.fixed_dictionaries({c: st.sampled_from((0.1, 0.4, 0.5, 0.9)) for c in CRITERIA})


@settings(deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=40), thresholds=CUTOFFS)
def test_every_figure_is_the_one_of_scikit_learn(rows, thresholds):
    values = classification_metrics(pairs(rows), criteria=CRITERIA, thresholds=thresholds).values
    expected = {}
    macro = {name: [] for name in ("precision", "recall", "f1", "auroc", "average_precision")}
    for criterion in (*CRITERIA, None):
        own = [row for row in rows if criterion in (None, row[0])]
        y = np.array([row[1] for row in own])
        p = np.array([row[2] for row in own])
        decisions = np.array([row[2] >= thresholds[row[0]] for row in own], dtype=int)
        figures = dict.fromkeys(macro)
        if len(own) and not y.all() and decisions.any():
            figures["precision"] = sk.precision_score(y, decisions)
        if len(own) and y.any():
            figures["recall"] = sk.recall_score(y, decisions)
        if len(own) and y.any() and not y.all():
            figures["f1"] = sk.f1_score(y, decisions)
            figures["average_precision"] = sk.average_precision_score(y, p)
            figures["auroc"] = sk.roc_auc_score(y, p)
            if criterion:
                for name, figure in figures.items():
                    if figure is not None or name == "precision":
                        macro[name].append(figure or 0.0)
        for name, figure in figures.items():
            key = f"per_criterion/{criterion}/{name}" if criterion else f"{name}_micro"
            expected[key] = figure
        if criterion:
            unmet = len(own) and not y.all()
            refused = len(own) and not decisions.all()
            expected |= {
                f"per_criterion/{criterion}/specificity": sk.recall_score(y, decisions, pos_label=0)
                if unmet
                else None,
                f"per_criterion/{criterion}/npv": sk.precision_score(y, decisions, pos_label=0)
                if refused
                else None,
            }
        tn, fp, fn, tp = (0, 0, 0, 0)
        if len(own):
            tn, fp, fn, tp = sk.confusion_matrix(y, decisions, labels=[0, 1]).ravel()
        prefix = f"per_criterion/{criterion}/" if criterion else ""
        expected |= {f"{prefix}true_positives": tp, f"{prefix}false_positives": fp}
        expected |= {f"{prefix}true_negatives": tn, f"{prefix}false_negatives": fn}
        expected |= {f"{prefix}n_pairs": len(own), f"{prefix}n_positive": sum(y)}
    # `y`, `p` and `decisions` are now those of all pairs.
    expected |= {f"{name}_macro": np.mean(own) if own else None for name, own in macro.items()}
    both = len(set(y)) == 2
    expected["accuracy"] = sk.accuracy_score(y, decisions) if both else None
    expected["brier"] = sk.brier_score_loss(y, p, pos_label=1)
    expected["n_criteria_in_macro"] = len(macro["f1"])
    expected["at_0.5/accuracy"] = sk.accuracy_score(y, p >= 0.5) if both else None
    assert {key: values[key] for key in expected} == pytest.approx(expected, abs=1e-12)


def test_the_fixed_threshold_figures_are_those_of_thresholds_of_one_half():
    predictions = random_pairs(0)
    cutoffs = {"A.1": 0.2, "A.2": 0.7, "A.3": 0.3}
    tuned = classification_metrics(predictions, criteria=CRITERIA, thresholds=cutoffs).values
    fixed = classification_metrics(predictions, criteria=CRITERIA, thresholds=HALF).values
    at_half = {key.removeprefix("at_0.5/"): v for key, v in tuned.items() if "at_0.5/" in key}
    assert at_half == {key: fixed[key] for key in at_half}
    assert len(at_half) == 7
    assert tuned["f1_macro"] != fixed["f1_macro"]


def test_a_hand_worked_case():
    # A.1: TP FP FN TN, F1 1/2. A.2: TP TN, F1 1. A.3: no positive, one false alarm.
    rows = [("A.1", 1, 0.9), ("A.1", 0, 0.8), ("A.1", 1, 0.2), ("A.1", 0, 0.1)]
    rows += [("A.2", 1, 0.5), ("A.2", 0, 0.4), ("A.3", 0, 0.6)]
    predictions = pairs(rows, ["p1", "p1", "p1", "p2", "p2", "p2", "p2"])
    values = classification_metrics(predictions, criteria=CRITERIA, thresholds=HALF).values
    expected = {"n_pairs": 7, "n_positive": 3, "n_groups": 2, "n_criteria_in_macro": 2}
    expected |= {"f1_macro": 0.75, "precision_macro": 0.75, "recall_macro": 0.75}
    expected |= {"f1_micro": 4 / 7, "precision_micro": 0.5, "recall_micro": 2 / 3}
    expected |= {"accuracy": 4 / 7, "auroc_macro": 0.875, "per_criterion/A.3/precision": 0.0}
    expected |= {"average_precision_macro": (1 / 2 + 1 / 2 * 2 / 3 + 1) / 2}
    expected |= {"brier": (0.01 + 0.64 + 0.64 + 0.01 + 0.25 + 0.16 + 0.36) / 7}
    assert {key: values[key] for key in expected} == pytest.approx(expected)


def test_the_keys_are_exactly_the_documented_ones():
    values = classification_metrics(pairs([]), criteria=["X"], thresholds={"X": 0.5}).values
    counts = ["true_positives", "false_positives", "false_negatives", "true_negatives"]
    decision = ["precision", "recall", "f1"]
    both = [f"{name}_{kind}" for name in decision for kind in ("micro", "macro")]
    ranking = ["auroc", "average_precision"]
    expected = ["n_pairs", "n_positive", "n_groups", "n_criteria_in_macro", "accuracy", *both]
    expected += [f"{name}_{kind}" for name in ranking for kind in ("micro", "macro")]
    expected += ["brier", "ece", *counts, *(f"at_0.5/{name}" for name in ("accuracy", *both))]
    own = [*decision, "specificity", "npv", *ranking, "threshold", "n_pairs", "n_positive", *counts]
    expected += [f"per_criterion/X/{name}" for name in own]
    assert sorted(values) == sorted(expected)


def test_a_criterion_without_positives_is_undefined_and_moves_no_macro_figure():
    rows = [("A.1", 1, 0.9), ("A.1", 0, 0.4)]
    alone = classification_metrics(pairs(rows), criteria=["A.1"], thresholds=HALF)
    rows += [("A.2", 0, 0.9), ("A.2", 0, 0.1)]
    beside = classification_metrics(pairs(rows), criteria=["A.1", "A.2"], thresholds=HALF)
    for key in ("f1_macro", "precision_macro", "recall_macro", "auroc_macro"):
        assert beside.values[key] == alone.values[key] == 1.0
    for name in ("recall", "f1", "auroc", "average_precision"):
        assert beside.values[f"per_criterion/A.2/{name}"] is None
        assert beside.undefined[f"per_criterion/A.2/{name}"] == "no positive labels"
    assert beside.values["per_criterion/A.2/precision"] == 0.0


def test_a_criterion_with_positives_and_no_positive_decision_counts_zero_in_macro():
    rows = [("A.1", 1, 0.9), ("A.1", 0, 0.1), ("A.2", 1, 0.1), ("A.2", 0, 0.2)]
    metrics = classification_metrics(pairs(rows), criteria=["A.1", "A.2"], thresholds=HALF)
    assert metrics.values["per_criterion/A.2/f1"] == 0.0
    assert metrics.values["per_criterion/A.2/precision"] is None
    assert metrics.undefined["per_criterion/A.2/precision"] == "no positive decisions"
    assert metrics.values["f1_macro"] == metrics.values["precision_macro"] == 0.5


def test_a_criterion_of_positives_only_has_a_recall_and_no_f1():
    rows = [("A.1", 1, 0.9), ("A.2", 1, 0.1), ("A.2", 0, 0.2)]
    metrics = classification_metrics(pairs(rows), criteria=["A.1", "A.2"], thresholds=HALF)
    for name in ("f1", "precision", "auroc", "average_precision"):
        assert metrics.undefined[f"per_criterion/A.1/{name}"] == "labels of one class only"
    assert metrics.values["per_criterion/A.1/recall"] == 1.0
    assert metrics.values["f1_macro"] == metrics.values["per_criterion/A.2/f1"] == 0.0
    assert metrics.values["n_criteria_in_macro"] == 1


def test_a_split_of_positives_only_has_no_figure_that_always_met_would_reach():
    metrics = classification_metrics(
        pairs([("A.1", 1, 0.9), ("A.2", 1, 0.8)]), criteria=CRITERIA, thresholds=HALF
    )
    for name in ("accuracy", "f1_micro", "f1_macro", "average_precision_micro", "precision_macro"):
        assert metrics.values[name] is None, name


def test_an_empty_split_has_counts_and_reasons_only():
    metrics = classification_metrics(pairs([]), criteria=CRITERIA, thresholds=HALF)
    defined = {key for key, value in metrics.values.items() if value is not None}
    assert all(re.search(r"(n_\w+|_(posi|nega)tives|threshold)$", key) for key in defined)
    assert metrics.undefined["accuracy"] == metrics.undefined["f1_micro"] == "no pairs"


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(ROW, max_size=6))
def test_none_goes_with_a_reason_and_nan_never_comes_out(rows):
    metrics = classification_metrics(pairs(rows), criteria=CRITERIA, thresholds=HALF)
    defined = {key: value for key, value in metrics.values.items() if value is not None}
    assert metrics.values.keys() - defined.keys() == metrics.undefined.keys()
    assert all(metrics.undefined.values())
    assert all(type(v) in (int, float) and math.isfinite(v) for v in defined.values())


def test_calibration_error_is_the_weighted_gap_of_right_closed_bins():
    # Bins (0, .5] and (.5, 1]: |1 - .7| over two pairs, |1 - 1.6| over two pairs, of four.
    labels, probabilities = np.array([0, 1, 0, 1]), np.array([0.2, 0.5, 0.6, 1.0])
    error = expected_calibration_error(labels, probabilities, n_bins=2)
    assert error == pytest.approx((0.3 + 0.6) / 4)
    # Zero belongs to the first bin, and the default is 15 bins: 0.06 and 0.07 are apart.
    labels, probabilities = np.array([1, 0, 0]), np.array([0.0, 0.06, 0.07])
    assert expected_calibration_error(labels, probabilities) == pytest.approx((0.94 + 0.07) / 3)


def test_the_order_of_rows_changes_no_bit_of_any_figure():
    predictions = random_pairs(3, n_posts=400, decimals=17)
    options = {"criteria": CRITERIA, "thresholds": HALF}
    figures = classification_metrics(predictions, **options)
    for seed in range(5):
        shuffled = take(predictions, np.random.default_rng(seed).permutation(1200))
        assert classification_metrics(shuffled, **options) == figures


def fitted(predictions, *, criteria=CRITERIA, mode="global", min_support=1):
    """Thresholds of pairs that are all of one group: every bootstrap sample is the split itself."""
    alone = PairPredictions(
        predictions.labels,
        predictions.probabilities,
        predictions.criterion_ids,
        np.full(len(predictions.labels), "p"),
    )
    return fit_thresholds(alone, criteria=criteria, mode=mode, min_support=min_support)


def exact_macro_f1(predictions, threshold):
    f1 = []
    for criterion in CRITERIA:
        own = predictions.criterion_ids == criterion
        y, decided = predictions.labels[own], predictions.probabilities[own] >= threshold
        if y.any() and not y.all():
            f1.append(Fraction(2 * int(y[decided].sum()), int(decided.sum()) + int(y.sum())))
    return sum(f1, Fraction(0))


@settings(deadline=None, max_examples=200)
@given(rows=st.lists(ROW, max_size=25))
def test_the_global_threshold_is_the_best_candidate_by_brute_force(rows):
    predictions = pairs(rows)
    mixed = {c for c in CRITERIA if {row[1] for row in rows if row[0] == c} == {0, 1}}
    scores = sorted({row[2] for row in rows if row[0] in mixed})
    cuts = [(low, (low + high) / 2, high) for low, high in itertools.pairwise(scores)]
    candidates = [0.5, *scores[:1], *(mid if mid > low else high for low, mid, high in cuts)]
    wanted = min(candidates, key=lambda t: (-exact_macro_f1(predictions, t), abs(t - 0.5), t))
    assert fitted(predictions) == dict.fromkeys(CRITERIA, wanted)


@pytest.mark.slow
def test_the_threshold_is_the_best_on_average_over_bootstrap_samples_of_posts():
    rng = np.random.default_rng(1)
    labels = (rng.random(40) < 0.2).astype(int)
    scores = np.round(np.clip(0.3 + 0.3 * labels + 0.2 * rng.normal(size=40), 0, 1), 2)
    posts = [f"p{k // 2}" for k in range(40)]
    predictions = pairs([("A.1", int(y), p) for y, p in zip(labels, scores, strict=True)], posts)
    draws = np.random.default_rng(0)
    samples = [draws.integers(20, size=20) for _ in range(200)]
    ids = np.unique(posts)

    def mean_f1(threshold):
        values = []
        for sample in samples:
            rows = [k for place in sample for k in range(40) if posts[k] == ids[place]]
            if labels[rows].any():
                values.append(sk.f1_score(labels[rows], scores[rows] >= threshold))
        return np.mean(values)

    found = fit_thresholds(predictions, criteria=["A.1"], mode="global", min_support=1)["A.1"]
    distinct = np.unique(scores)
    best = max(map(mean_f1, (distinct[1:] + distinct[:-1]) / 2))
    assert mean_f1(found) == pytest.approx(best)


def test_of_very_many_probabilities_enough_are_tried():
    rng = np.random.default_rng(2)
    labels = (rng.random(20_000) < 0.01).astype(int)
    scores = 1 / (1 + np.exp(-(rng.normal(size=20_000) + 3 * labels - 3)))
    predictions = pairs([("A.1", int(y), float(p)) for y, p in zip(labels, scores, strict=True)])
    found = fit_thresholds(predictions, criteria=["A.1"], mode="global", min_support=1)["A.1"]
    best = max(
        sk.f1_score(labels, scores >= t)
        for t in np.quantile(scores, 1 - np.geomspace(1e-3, 1e-1, 200))
    )
    assert sk.f1_score(labels, scores >= found) > best - 0.01


def test_a_criterion_gets_its_own_threshold_only_with_enough_of_both_classes():
    rows = [("A.1", 1, 0.30), ("A.1", 1, 0.28), ("A.1", 0, 0.2), ("A.1", 0, 0.1)]
    rows += [("A.2", 1, 0.9), ("A.2", 1, 0.8), ("A.2", 0, 0.7)]
    rows += [("A.3", 0, 0.1), ("A.3", 0, 0.2), ("A.3", 0, 0.3)]
    common = fitted(pairs(rows), min_support=2)["A.1"]
    own = fitted(pairs(rows), mode="per_criterion", min_support=2)
    assert own["A.1"] == pytest.approx(0.24)
    assert own["A.2"] == own["A.3"] == common
    own = fitted(pairs(rows), mode="per_criterion", min_support=0)
    assert own["A.2"] == pytest.approx(0.75)
    assert own["A.3"] == common


def test_equally_good_thresholds_go_to_the_one_nearest_one_half_then_the_smaller():
    def one(*rows):
        return fitted(pairs(rows), criteria=["A.1"])["A.1"]

    assert one(("A.1", 1, 0.9), ("A.1", 0, 0.0)) == 0.5
    # F1 is 2/3 at 0.25 and at the middle of the last two, less between.
    rows = [("A.1", 0, 0.125), ("A.1", 1, 0.375), ("A.1", 1, 0.875)]
    assert one(*rows, *[("A.1", 0, 0.5)] * 2) == 0.6875
    assert one(*rows, *[("A.1", 0, 0.625)] * 2) == 0.25  # and 0.75


def test_labels_of_one_class_give_one_half():
    for rows in ([], [("A.1", 0, 0.2), ("A.2", 0, 0.9)], [("A.1", 1, 0.2)]):
        for mode in ("global", "per_criterion"):
            assert fitted(pairs(rows), mode=mode, min_support=0) == HALF


@pytest.mark.parametrize("mode", ["global", "per_criterion"])
def test_the_fitted_threshold_may_decide_every_pair_positive(mode):
    alike = pairs([("A.1", 1, 0.3), ("A.1", 0, 0.3)])
    found = fitted(alike, criteria=["A.1"], mode=mode)
    assert found == {"A.1": 0.3}
    values = classification_metrics(alike, criteria=["A.1"], thresholds=found).values
    assert values["f1_macro"] == pytest.approx(2 / 3)
    # The lowest pair is the positive one: F1 2/3 with all of them, else 0.
    lowest = pairs([("A.1", 1, 0.1), ("A.1", 0, 0.3)])
    assert fitted(lowest, criteria=["A.1"], mode=mode) == {"A.1": 0.1}


def test_the_sensitivity_at_a_specificity_has_its_cut_off_from_val():
    val = pairs([("A.1", 0, k / 100) for k in range(20)] + [("A.2", 1, 0.5)])
    cutoffs = cutoffs_at_specificity(val, criteria=CRITERIA, specificity=0.9)
    assert cutoffs.keys() == {"A.1"}
    assert (np.arange(20) / 100 < cutoffs["A.1"]).mean() == 0.9
    test = pairs([("A.1", 1, 0.16), ("A.1", 1, 0.17), ("A.1", 1, 0.9), ("A.1", 1, 0.18)])
    found = recall_at_cutoffs(test, criteria=CRITERIA, cutoffs=cutoffs)
    assert found.values["per_criterion/A.1/recall_at_specificity"] == 0.5
    assert found.undefined["per_criterion/A.2/recall_at_specificity"] == "no unmet pair in val"


def test_predictive_values_at_another_prevalence_are_bayes_rule():
    metrics = {"per_criterion/A.1/recall": 0.8, "per_criterion/A.1/specificity": 0.9}
    metrics |= {"per_criterion/A.2/recall": None, "per_criterion/A.2/specificity": 0.9}
    found = values_at_prevalence(metrics, prevalence=0.1)
    assert found["per_criterion/A.1/precision_at_prevalence"] == pytest.approx(0.08 / 0.17)
    assert found["per_criterion/A.1/npv_at_prevalence"] == pytest.approx(0.81 / 0.83)
    assert found["per_criterion/A.2/precision_at_prevalence"] is None


def test_neighbouring_floats_are_told_apart_by_the_fitted_threshold():
    for low in (0.0, 0.3, 0.7, 1e-300, np.nextafter(1.0, 0)):
        high = np.nextafter(low, 1)
        rows = [("A.1", 0, low), ("A.1", 1, high), ("A.1", 0, low)]
        assert low < fitted(pairs(rows), criteria=["A.1"])["A.1"] <= high


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("labels", [0, 2], "`labels` must be 0 or 1"),
        ("labels", [0.0, math.nan], "`labels` must be 0 or 1"),
        ("labels", [0], "one shape"),
        ("probabilities", [0.5, math.nan], "`probabilities` must be finite"),
        ("probabilities", [0.5, 1.1], "`probabilities` must be finite"),
        ("probabilities", [-0.1, 0.5], "`probabilities` must be finite"),
        ("criterion_ids", ["A.1", None], "`criterion_ids` must be strings"),
        ("group_ids", [1, 2], "`group_ids` must be strings"),
    ],
)
def test_bad_predictions_are_refused_by_name(field, value, message):
    arrays = {"labels": [0, 1], "probabilities": [0.1, 0.9]}
    arrays |= {"criterion_ids": ["A.1", "A.2"], "group_ids": ["p", "q"], field: value}
    with pytest.raises(ValueError, match=message):
        PairPredictions(**{name: np.array(array) for name, array in arrays.items()})


def test_bad_options_are_refused_by_name():
    predictions = pairs([("A.1", 1, 0.9), ("A.9", 0, 0.1)])
    known = pairs([("A.1", 1, 0.9)])
    with pytest.raises(ValueError, match=r"\['A.9'\] are not"):
        classification_metrics(predictions, criteria=CRITERIA, thresholds=HALF)
    with pytest.raises(ValueError, match="must be distinct"):
        classification_metrics(known, criteria=["A.1", "A.1"], thresholds=HALF)
    with pytest.raises(ValueError, match=r"lacks \['A.2', 'A.3'\]"):
        classification_metrics(known, criteria=CRITERIA, thresholds={"A.1": 0.5})
    with pytest.raises(ValueError, match="`thresholds` must be finite"):
        classification_metrics(known, criteria=["A.1"], thresholds={"A.1": math.nan})
    with pytest.raises(ValueError, match="`mode` must be"):
        fitted(known, mode="best")
    with pytest.raises(ValueError, match="`min_support` must not"):
        fitted(known, min_support=-1)
