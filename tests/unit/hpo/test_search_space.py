import optuna
import pytest

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.hpo.search_space import SearchSpace

RATE = {"type": "float", "low": 1e-5, "high": 1e-3, "log": True}
LAYERS = {"type": "int", "low": 1, "high": 9, "step": 2}
LOSS = {"type": "categorical", "choices": ["plain", "focal"]}
GAMMA = {"type": "float", "low": 0.0, "high": 4.0, "when": {"task.loss": "focal"}}
NESTED = {
    "task": {"focal_gamma": GAMMA, "loss": LOSS},
    "training": {"learning_rate": RATE},
    "model": {"head_layers": LAYERS},
}


@pytest.fixture
def trial():
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).ask()


def fault_of(space) -> str:
    with pytest.raises(ConfigError) as caught:
        SearchSpace.read(space)
    return str(caught.value)


def test_keys_are_dotted_and_conditions_come_first():
    names = list(SearchSpace.read(NESTED).parameters)
    assert set(names) == {
        "task.loss",
        "task.focal_gamma",
        "training.learning_rate",
        "model.head_layers",
    }
    assert names.index("task.loss") < names.index("task.focal_gamma")


@pytest.mark.parametrize(("loss", "asked"), [("plain", False), ("focal", True)])
def test_a_condition_decides_whether_a_parameter_is_asked_for(loss, asked):
    study = optuna.create_study()
    study.enqueue_trial({"task.loss": loss})
    values = SearchSpace.read(NESTED).suggest(study.ask())
    assert ("task.focal_gamma" in values) is asked


def test_suggestions_lie_in_their_ranges_and_have_their_types(trial):
    values = SearchSpace.read(NESTED).suggest(trial)
    assert 1e-5 <= values["training.learning_rate"] <= 1e-3
    assert values["model.head_layers"] in {1, 3, 5, 7, 9}
    assert isinstance(values["model.head_layers"], int)


def test_choices_may_be_lists_and_mappings(trial):
    choices = [[1.0, 2.0], {"rank": 4}, None]
    space = SearchSpace.read({"task": {"weights": {"type": "categorical", "choices": choices}}})
    assert space.suggest(trial)["task.weights"] in choices


@pytest.mark.parametrize(
    ("parameter", "fault"),
    [
        ({"type": "real", "low": 0, "high": 1}, "`type` must be float, int or categorical"),
        ({"type": "float", "low": 1.0, "high": 1.0}, "`low` must be below `high`"),
        ({"type": "float", "low": 2.0, "high": 1.0}, "`low` must be below `high`"),
        ({"type": "float", "low": 0.0, "high": 1.0, "log": True}, "`low` must be above 0"),
        ({"type": "int", "low": 1, "high": 8, "log": True, "step": 2}, "exclude each other"),
        ({"type": "float", "low": 0.0, "high": 1.0, "step": 2.0}, "`step` must fit"),
        ({"type": "int", "low": 1.5, "high": 3}, "valid integer"),
        ({"type": "categorical", "choices": []}, "at least 1 item"),
        ({"type": "float", "low": 0.0, "hihg": 1.0}, "`hihg` is not a known key"),
        (
            {"type": "float", "low": 0.0, "high": 1.0, "when": {"b": 1}},
            "`b`, which is not searched",
        ),
        (3, "must be a mapping with a type, but is 3"),
    ],
)
def test_a_parameter_that_is_none_is_refused_by_its_key(parameter, fault):
    told = fault_of({"training": {"epochs": parameter}})
    assert "`training.epochs`" in told
    assert fault in told


def test_all_faults_are_told_at_once():
    told = fault_of({"a": {"type": "x"}, "b": {"type": "int", "low": 3, "high": 1}, "c": "text"})
    assert told.count("\n  - ") == 3
    assert all(f"`{name}`" in told for name in "abc")


def test_conditions_that_can_never_hold_or_turn_in_a_circle_are_refused():
    either = {"type": "categorical", "choices": [1, 2]}
    never = fault_of({"a": either, "b": {**either, "when": {"a": 3}}})
    assert "`b` depends on `a` being 3, which it never is" in never
    circle = fault_of({"a": {**either, "when": {"b": 1}}, "b": {**either, "when": {"a": 1}}})
    assert "`a`, `b` depend on each other" in circle


def test_a_later_mapping_changes_and_takes_out():
    space = SearchSpace.read(
        NESTED,
        {"training": {"learning_rate": None}, "model": {"head_layers": {**LAYERS, "high": 5}}},
    )
    assert "training.learning_rate" not in space.parameters
    assert space.parameters["model.head_layers"].high == 5


def test_both_ends_and_all_choices_are_offered_with_their_conditions_met():
    offered = []
    SearchSpace.read(NESTED).check(offered.append)
    assert {"task.loss": "focal", "task.focal_gamma": 4.0} in offered
    assert {"training.learning_rate": 1e-5} in offered
    assert {"task.loss": "plain"} in offered
    assert len(offered) == 8


def test_what_is_not_accepted_is_told_for_all_parameters():
    def refuse(values):
        raise ConfigError("no such key")

    with pytest.raises(ConfigError) as caught:
        SearchSpace.read(NESTED).check(refuse)
    assert all(f"`{name}`" in str(caught.value) for name in SearchSpace.read(NESTED).parameters)


BEST = {"training.learning_rate": 1e-4, "model.head_layers": 9, "task.loss": "plain"}


def test_a_narrowed_range_has_its_share_of_the_old_one_around_the_best():
    space = SearchSpace.read(NESTED).narrowed(BEST, [], width=0.5)
    rate = space.parameters["training.learning_rate"]
    # Half of two decades, in the middle of them.
    assert rate.low == pytest.approx(10**-4.5)
    assert rate.high == pytest.approx(10**-3.5)
    # At an end of the old range it stays within it, on the grid of its steps.
    layers = space.parameters["model.head_layers"]
    assert (layers.low, layers.high) == (5, 9)


def test_narrowed_choices_are_those_of_the_best_and_the_top():
    space = SearchSpace.read(NESTED)
    alone = space.narrowed(BEST, [], width=0.5)
    assert alone.parameters["task.loss"].choices == ["plain"]
    assert "task.focal_gamma" not in alone.parameters
    top = space.narrowed(BEST, [{"task.loss": "focal"}], width=0.5)
    assert top.parameters["task.loss"].choices == ["plain", "focal"]
    # The best did not have it, so nothing is known of where it is good.
    assert top.parameters["task.focal_gamma"] == space.parameters["task.focal_gamma"]


def test_a_narrowed_space_contains_the_best(trial):
    space = SearchSpace.read(NESTED)
    values = space.suggest(trial)
    for name, parameter in space.narrowed(values, [values], width=0.1).parameters.items():
        if name in values and hasattr(parameter, "low"):
            assert parameter.low <= values[name] <= parameter.high


@pytest.mark.parametrize("top", [[], [{"task.loss": "focal"}]])
def test_a_narrowed_space_can_be_written_and_read_again(top):
    space = SearchSpace.read(NESTED).narrowed(BEST, top, width=0.5)
    assert SearchSpace.read(space.to_json()) == space


def test_a_given_value_is_not_searched_and_decides_the_conditions_on_it():
    space = SearchSpace.read(NESTED)
    plain, focal = (space.without({"task.loss": loss}).parameters for loss in ("plain", "focal"))
    assert "task.loss" not in plain
    assert "task.focal_gamma" not in plain
    assert focal["task.focal_gamma"].when == {}


def test_a_grid_has_every_combination_once():
    space = SearchSpace.read({"a": LAYERS, "b": LOSS})
    points = [tuple(point.values()) for point in space.grid()]
    assert len(set(points)) == len(points) == 10


def test_a_grid_of_a_range_without_steps_or_with_a_condition_is_refused():
    with pytest.raises(ConfigError) as caught:
        SearchSpace.read(NESTED).grid()
    assert "`training.learning_rate` is a range without steps" in str(caught.value)
    assert "`task.focal_gamma` has a condition" in str(caught.value)
