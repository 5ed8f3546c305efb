import pytest

from psy_agents_noaug.metrics.protocols import published_value


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.41, "0.41"), (0.4444, "0.444"), (1.0, "1.0"), (0.0, "0.0"), (None, "")],
)
def test_a_published_figure_is_shown_with_its_own_decimals(value, shown):
    assert published_value(value) == shown
