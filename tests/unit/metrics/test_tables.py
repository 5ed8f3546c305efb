from psy_agents_noaug.metrics.tables import beaten_line, with_interval

SHOWN = {"one": "ONE", "other": "OTHER"}


def gains(**baselines):
    metrics = {}
    for name, (value, low, high) in baselines.items():
        key = f"baseline_{name}/f1_gain"
        metrics |= {key: value, f"{key}_ci_low": low, f"{key}_ci_high": high}
    return metrics


def line(**baselines):
    return beaten_line(gains(**baselines), SHOWN, key="f1", name="F1")


def test_a_model_that_beats_all_baselines_is_said_to_and_by_which_figure():
    expected = "By F1 the model is better than each baseline (paired 95 % intervals)."
    assert line(one=(0.2, 0.1, 0.3), other=(0.1, 0.01, 0.2)) == expected


def test_baselines_that_are_not_beaten_beyond_the_interval_are_named():
    found = line(one=(0.2, -0.1, 0.5), other=(0.1, None, None))
    assert found == (
        "By F1 the model is NOT shown to be better than: ONE (difference +0.200 [-0.100, +0.500]); "
        "OTHER (difference +0.100 [too few])."
    )


def test_baselines_that_are_better_are_named_as_such():
    found = line(one=(-0.2, -0.3, -0.1), other=(0.1, 0.01, 0.2))
    assert found == "By F1 the model is WORSE than: ONE (difference -0.200 [-0.300, -0.100])."


def test_a_figure_without_an_interval_says_too_few():
    metrics = {"f1": 0.5, "f1_ci_low": None, "f1_ci_high": None, "auroc": None}
    assert with_interval(metrics, "f1") == "0.500 [too few]"
    assert with_interval(metrics, "auroc") == "n/a"
