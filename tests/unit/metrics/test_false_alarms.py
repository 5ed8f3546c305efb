import numpy as np
import pytest

from psy_agents_noaug.metrics.false_alarms import false_alarms_per_post

POSTS = np.asarray(["p1", "p1", "p1", "p2", "p2", "p3"])
LABELS = [0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("decisions", "value"),
    [
        ([1, 1, 1, 1, 1, 0], 1.0),  # three, in two of three posts
        ([0, 1, 1, 0, 1, 0], 1 / 3),
        ([0, 0, 0, 0, 0, 0], 0.0),  # a missed positive is no false alarm
        (LABELS, 0.0),
    ],
)
def test_false_alarms_are_counted_over_all_posts(decisions, value):
    assert false_alarms_per_post(POSTS, LABELS, decisions) == pytest.approx(value)


def test_without_pairs_there_is_no_rate():
    assert false_alarms_per_post(np.asarray([], dtype=str), [], []) is None
