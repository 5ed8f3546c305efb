import pytest

from psy_agents_noaug.training.early_stopping import EarlyStopping


def run(values, *, mode="max", patience=2, min_delta=0.0) -> tuple[EarlyStopping, list[int]]:
    """Return the judge after all values, and the steps (from 1) at which it would stop."""
    stopping = EarlyStopping(mode=mode, patience=patience, min_delta=min_delta)
    stops = []
    for step, value in enumerate(values, start=1):
        stopping.update(value, step=step)
        if stopping.should_stop:
            stops.append(step)
    return stopping, stops


@pytest.mark.parametrize("mode", ["max", "min"])
def test_it_stops_after_as_many_evaluations_without_a_gain_as_its_patience(mode):
    sign = 1 if mode == "max" else -1
    values = [sign * value for value in (0.1, 0.3, 0.2, 0.4, 0.4, 0.1)]
    stopping, stops = run(values, mode=mode)
    assert stops == [6]
    assert (stopping.best, stopping.best_step) == (sign * 0.4, 4)


def test_ties_keep_the_earliest_step():
    stopping = EarlyStopping(mode="max", patience=None)
    assert [stopping.update(0.5, step=step) for step in (1, 2)] == [True, False]
    assert stopping.best_step == 1


def test_the_patience_left_falls_with_each_evaluation_without_a_gain():
    assert [run([0.5, 0.1, 0.1][:n], patience=2)[0].patience_left for n in range(4)] == [2, 2, 1, 0]


def test_without_patience_it_never_stops():
    stopping, stops = run([0.5, *[0.1] * 50], patience=None)
    assert stops == []
    assert stopping.patience_left is None
    assert stopping.best_step == 1


def test_small_gains_are_best_but_do_not_reset_the_patience():
    stopping, stops = run([0.50, 0.55, 0.58], min_delta=0.1)
    assert stops == [3]
    assert stopping.best_step == 3


def test_gains_add_up_against_the_last_one_that_counted():
    _, stops = run([0.50, 0.56, 0.62, 0.62, 0.62], min_delta=0.1)
    assert stops == [5]


def test_an_undefined_value_is_no_gain():
    stopping, stops = run([None, None])
    assert stops == [2]
    assert stopping.best_step is stopping.best is None
    stopping, stops = run([None, 0.0, None, -1.0])
    assert stops == [4]
    assert (stopping.best, stopping.best_step) == (0.0, 2)


def test_its_state_carries_on():
    values = [0.5, 0.55, 0.4, 0.7, 0.3, 0.2]
    whole, stops = run(values, min_delta=0.1)
    for cut in range(1, len(values)):
        first, _ = run(values[:cut], min_delta=0.1)
        second = EarlyStopping(mode="max", patience=2, min_delta=0.1)
        second.load_state_dict(first.state_dict())
        assert second.should_stop == first.should_stop
        for step, value in enumerate(values[cut:], start=cut + 1):
            second.update(value, step=step)
        assert second.state_dict() == whole.state_dict()
    assert stops == [3, 6]
