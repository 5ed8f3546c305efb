import numpy as np
import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from psy_agents_noaug.metrics.multilabel import AVERAGES, multilabel_metrics, with_none_label
from psy_agents_noaug.metrics.posts import PostDecisions

NAMES = ["a", "b", "c", "none"]


def texts(labels, decisions, groups=None) -> PostDecisions:
    labels, decisions = np.array(labels, dtype=np.int64), np.array(decisions, dtype=np.int64)
    ids = groups or [f"p{number}" for number in range(len(labels))]
    return PostDecisions(labels, decisions, np.array(ids))


def random_texts(seed: int, *, rates=(0.5, 0.2, 0.0)) -> PostDecisions:
    """40 texts; with the last rate 0 a label that no text has, and that is decided now and then."""
    rng = np.random.default_rng(seed)
    labels = rng.random((40, 3)) < rates
    return with_none_label(texts(labels, np.where(rng.random((40, 3)) < 0.8, labels, ~labels)))


@pytest.mark.parametrize("seed", range(20))
def test_all_figures_are_those_of_scikit_learn(seed):
    drawn = random_texts(seed)
    found = multilabel_metrics(drawn, names=NAMES).values
    for average in (*AVERAGES, None):
        *scores, support = precision_recall_fscore_support(
            drawn.labels, drawn.decisions, average=average, zero_division=0
        )
        for name, score in zip(("precision", "recall", "f1"), scores, strict=True):
            if average is not None:
                assert found[f"{name}_{average}"] == pytest.approx(score, abs=1e-12)
                continue
            own = [found[f"per_label/{label}/{name}"] for label in NAMES]
            assert own == pytest.approx(score.tolist(), abs=1e-12)
    assert [found[f"per_label/{label}/support"] for label in NAMES] == support.tolist()
    assert found["subset_accuracy"] == accuracy_score(drawn.labels, drawn.decisions)


def test_a_worked_example():
    # Right; one of two found; a false alarm; nothing decided, which is right only with a label for it.
    labels = [[1, 0], [1, 1], [0, 1], [0, 0]]
    decided = [[1, 0], [1, 0], [1, 1], [0, 0]]
    found = multilabel_metrics(texts(labels, decided), names=["a", "b"]).values
    assert found["f1_micro"] == pytest.approx(2 * 3 / (4 + 4))
    assert found["f1_macro"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["f1_samples"] == pytest.approx((1 + 2 / 3 + 2 / 3 + 0) / 4)
    assert found["subset_accuracy"] == 0.5
    derived = with_none_label(texts(labels, decided))
    assert derived.labels[:, 2].tolist() == derived.decisions[:, 2].tolist() == [0, 0, 0, 1]
    found = multilabel_metrics(derived, names=["a", "b", "none"]).values
    assert found["f1_samples"] == pytest.approx((1 + 2 / 3 + 2 / 3 + 1) / 4)


def test_intervals_hold_the_figures_and_are_over_authors():
    drawn = random_texts(3, rates=(0.5, 0.4, 0.3))
    authors = [f"a{number // 20}" for number in range(40)]
    single = multilabel_metrics(drawn, names=NAMES).values
    by_author = multilabel_metrics(
        texts(drawn.labels, drawn.decisions, authors), names=NAMES
    ).values
    for key in ("f1_micro", "f1_macro", "f1_samples", "subset_accuracy"):
        low, high = (single[f"{key}_ci_{end}"] for end in ("low", "high"))
        assert 0 < low < single[key] < high < 1
        # Two authors tell next to nothing, however many posts they have.
        assert by_author[f"{key}_ci_high"] - by_author[f"{key}_ci_low"] > 1.5 * (high - low)
    assert "f1_weighted_ci_low" not in single


def test_a_macro_average_has_no_interval_if_one_text_has_a_label_alone():
    labels = [[1, 0], [1, 0], [0, 0], [0, 1], [1, 0], [0, 0]]
    found = multilabel_metrics(texts(labels, labels[::-1]), names=["a", "b"])
    assert found.values["f1_macro_ci_low"] is None
    assert "without one of 1 groups" in found.undefined["f1_macro_ci_low"]
    assert found.values["f1_micro_ci_low"] is not None


def test_without_texts_there_is_a_reason_instead_of_a_figure():
    found = multilabel_metrics(texts(np.zeros((0, 2)), np.zeros((0, 2))), names=["a", "b"])
    assert found.values["f1_macro"] is None
    assert found.undefined["subset_accuracy"] == "no text was judged by every criterion"


def test_another_number_of_names_than_labels_is_refused():
    with pytest.raises(ValueError, match="must be 4, but are 2"):
        multilabel_metrics(random_texts(0), names=["a", "b"])
