"""What is drawn from prediction lines agrees with the figures of metrics.json."""

import numpy as np
import pytest

from psy_agents_noaug.metrics.calibration import cross_fitted
from psy_agents_noaug.metrics.curves import macro_f1_at, operating_points, reliability
from psy_agents_noaug.report.curves import symptom_counts
from psy_agents_noaug.report.facts import facts_of


@pytest.fixture(params=["joint_run", "sentence_run"])
def facts(request):
    return facts_of(request.getfixturevalue(request.param))


def test_the_counts_of_met_criteria_have_the_errors_of_the_figures(facts):
    for split in facts.splits:
        counts = symptom_counts(split, list(facts.criteria))
        gold, decided = np.indices(counts.shape)
        errors = (counts * (decided - gold)).sum() / counts.sum()
        absolute = (counts * np.abs(decided - gold)).sum() / counts.sum()
        assert counts.sum() == split.figures["per_post/n_judged"]
        assert errors == pytest.approx(split.figures["per_post/n_met_bias"])
        assert absolute == pytest.approx(split.figures["per_post/n_met_mae"])


def test_the_threshold_curve_has_the_macro_f1_of_the_figures_at_the_threshold_in_use(facts):
    for split in facts.splits:
        thresholds = {split.figures[f"per_criterion/{one}/threshold"] for one in facts.criteria}
        found = macro_f1_at(
            split.labels.pairs, criteria=list(facts.criteria), thresholds=np.array(list(thresholds))
        )
        assert found == pytest.approx([split.figures["f1_macro"]])


def test_reliability_has_the_calibration_errors_of_the_figures(facts):
    for split in facts.splits:
        calibrated = split.labels.calibrated
        if split.name == "val":
            calibrated = cross_fitted(split.labels.pairs, criteria=list(facts.criteria))
        for prefix, pairs in (("", split.labels.pairs), ("calibrated/", calibrated)):
            bins = reliability(pairs)
            error = (bins.n_pairs * np.abs(bins.share - bins.probability)).sum()
            assert error / bins.n_pairs.sum() == pytest.approx(split.figures[f"{prefix}ece"])


def test_the_detection_of_evidence_has_the_average_precision_of_the_figures(joint_run):
    facts = facts_of(joint_run)
    n_curves = 0
    for split in facts.splits:
        for one, ranking in split.detection.items():
            if not ranking.has_both_classes:
                continue
            points = operating_points(ranking)
            area = (np.diff(points.recall, prepend=0) * points.precision).sum()
            key = f"per_criterion/{one}/evidence_detection_average_precision"
            assert area == pytest.approx(split.figures[key])
            n_curves += 1
    assert n_curves > 5
