import pytest

from psy_agents_noaug.data.labels import BINARY, LabelScale

SEVERITY = LabelScale("ordinal", high=3)
SHARE = LabelScale("real", high=1)


@pytest.mark.parametrize(
    "cell", ["1e0", "+1", "-0", "1 0", "1_0", "\u0661", "nan", "inf", "maybe", ""]
)
def test_odd_spellings_are_no_label_of_any_scale(cell):
    assert [scale.parse(cell) for scale in (BINARY, SEVERITY, SHARE)] == [None] * 3


@pytest.mark.parametrize(
    ("scale", "cell", "label"),
    [
        (BINARY, "1", 1),
        (BINARY, "0.0", 0),
        (BINARY, "true", 1),
        (BINARY, "2", None),
        (BINARY, "0.5", None),
        (SEVERITY, "3", 3),
        (SEVERITY, "2.0", 2),
        (SEVERITY, "4", None),
        (SEVERITY, "1.5", None),
        (SEVERITY, "true", None),
        (SHARE, "0.25", 0.25),
        (SHARE, "1.01", None),
    ],
)
def test_a_cell_is_read_by_the_rule_of_its_scale(scale, cell, label):
    found = scale.parse(cell)
    assert found == label
    assert scale.kind == "real" or not isinstance(found, float)


def test_several_rows_merge_to_the_highest_label_and_real_ones_to_the_mean():
    assert [scale.merged for scale in (BINARY, SEVERITY, SHARE)] == ["highest", "highest", "mean"]
    assert BINARY.merge([0, 1, 0]) == 1
    assert SEVERITY.merge([2, 1]) == 2
    assert SHARE.merge([0.0, 0.5]) == 0.25


def test_the_rule_says_what_a_cell_must_hold():
    assert BINARY.rule == "must be 0 or 1"
    assert SEVERITY.rule == "must be a whole number from 0 to 3"
    assert SHARE.rule == "must be a number from 0 to 1"
