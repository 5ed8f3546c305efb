import numpy as np

from psy_agents_noaug.metrics.label_errors import label_errors

LABELS = np.array([1, 1, 1, 0, 0, 0, 0, 1, 0, 0])
PROBABILITIES = np.array([0.9, 0.8, 0.2, 0.1, 0.05, 0.7, 0.3, 0.4, 0.65, 0.5])


def test_scores_and_suspects_are_those_of_cleanlab():
    # cleanlab 2.9.0: `get_label_quality_scores`, self-confidence and normalised margin alike, and
    # `compute_confident_joint(..., return_indices_of_off_diagonals=True, calibrate=False)`.
    found = label_errors(LABELS, PROBABILITIES, np.full(10, "A.1"))
    expected = [0.9, 0.8, 0.2, 0.9, 0.95, 0.3, 0.7, 0.4, 0.35, 0.5]
    np.testing.assert_allclose(found.quality, expected, atol=1e-12)
    assert np.flatnonzero(found.suspected).tolist() == [2, 5, 8]


def test_a_criterion_is_judged_by_its_own_pairs():
    # Of a rare criterion, 0.3 may be as much as its met pairs have.
    labels = np.r_[LABELS, 1, 0, 0, 0]
    probabilities = np.r_[PROBABILITIES, 0.3, 0.02, 0.01, 0.35]
    ids = np.array(["A.1"] * 10 + ["A.9"] * 4)
    found = label_errors(labels, probabilities, ids)
    assert np.flatnonzero(found.suspected).tolist() == [2, 5, 8, 13]


def test_nothing_is_suspected_where_all_labels_are_the_same():
    found = label_errors(np.zeros(2, dtype=int), np.array([0.99, 0.1]), np.array(["A.1", "A.1"]))
    assert not found.suspected.any()


def test_of_two_labels_that_are_both_likely_enough_the_likelier_one_counts():
    # The third pair is as probable as the met ones, but more probable not to be met.
    found = label_errors(np.array([1, 1, 0, 0]), np.array([0.3, 0.5, 0.45, 0.5]), np.full(4, "A.1"))
    assert np.flatnonzero(found.suspected).tolist() == [0, 3]
