import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psy_agents_noaug.metrics.spans import (
    SpanPredictions,
    fit_null_threshold,
    span_metrics,
    span_samples,
)

TEXT = "aa bb cc dd ee ff gg hh"


def words(first: int, last: int) -> tuple[int, int]:
    """The span of words `first` to `last` of TEXT, both included."""
    return 3 * first, 3 * last + 2


def make(pairs, *, criteria=None, posts=None, text=TEXT) -> SpanPredictions:
    """From (gold spans, [(span, score)]) a pair."""
    n, width = len(pairs), max([1, *(len(predicted) for _, predicted in pairs)])
    starts, ends = (np.full((n, width), -1) for _ in range(2))
    scores = np.full((n, width), -np.inf)
    for row, (_, predicted) in enumerate(pairs):
        for column, ((start, end), score) in enumerate(predicted):
            starts[row, column], ends[row, column], scores[row, column] = start, end, score
    return SpanPredictions(
        texts=[text] * n,
        gold=[gold for gold, _ in pairs],
        starts=starts,
        ends=ends,
        scores=scores,
        criterion_ids=np.asarray(criteria or ["A"] * n),
        group_ids=np.asarray(posts or [f"p{row}" for row in range(n)]),
    )


WORKED = [
    ([words(0, 3)], [(words(1, 3), 2.0)]),
    ([], []),
    ([], [(words(0, 0), 1.0), (words(4, 4), -5.0)]),
    ([words(0, 1), words(5, 7)], [(words(5, 7), 3.0), (words(0, 0), 0.5)]),
]


def test_all_figures_of_a_worked_example_are_those_by_hand():
    values = span_metrics(make(WORKED), criteria=["A"], threshold=0.0).values
    assert (values["evidence_n_pairs"], values["n_answerable"]) == (4, 2)
    assert (values["n_gold_spans"], values["n_predicted_spans"]) == (3, 4)
    expected = {
        "evidence_exact_match": 2 / 4,
        "evidence_token_f1": (6 / 7 + 1 + 0 + 1) / 4,
        "answerable/evidence_exact_match": 1 / 2,
        "answerable/evidence_token_f1": (6 / 7 + 1) / 2,
        "unanswerable/evidence_exact_match": 1 / 2,
        "unanswerable/evidence_token_f1": 1 / 2,
        # 3/4 and 1/2 of the words are shared, which is enough.
        "evidence_iou_precision": 3 / 4,
        "evidence_iou_recall": 3 / 3,
        "evidence_iou_f1": 6 / 7,
        "evidence_set_token_precision": 7 / 8,
        "evidence_set_token_recall": 7 / 9,
        "evidence_set_token_f1": 14 / 17,
        # Characters of the predicted spans: 8, 2, 8, 2; of the gold ones 11 and 5 + 8; shared 8 and 10.
        "evidence_char_precision": 18 / 20,
        "evidence_char_recall": 18 / 24,
        "evidence_char_f1": 36 / 44,
        "evidence_detection_precision": 2 / 3,
        "evidence_detection_recall": 2 / 2,
        "evidence_detection_f1": 4 / 5,
        "evidence_detection_average_precision": 1.0,
        "evidence_iou_f1_micro": 6 / 7,
    }
    assert {key: values[key] for key in expected} == pytest.approx(expected)


def test_a_span_is_predicted_if_it_beats_no_evidence_by_the_threshold():
    pairs = make(WORKED)
    assert [len(kept) for kept in pairs.kept(0.0)] == [1, 0, 1, 2]
    assert [len(kept) for kept in pairs.kept(-0.5)] == [1, 0, 1, 1 + 1]
    assert [len(kept) for kept in pairs.kept(-0.6)] == [1, 0, 1, 1]
    assert [len(kept) for kept in pairs.kept(-99.0)] == [0, 0, 0, 0]
    assert [len(kept) for kept in pairs.kept(99.0)] == [1, 0, 2, 2]


def test_spans_at_the_first_and_the_last_word_count_in_full():
    pairs = make([([words(0, 0)], [(words(0, 0), 1.0)]), ([words(7, 7)], [(words(7, 7), 1.0)])])
    values = span_metrics(pairs, criteria=["A"], threshold=0.0).values
    assert values["evidence_exact_match"] == values["evidence_iou_f1"] == 1.0
    assert values["evidence_char_f1"] == values["evidence_set_token_f1"] == 1.0


def test_precision_and_recall_count_each_span_once():
    # Two predictions share half of their words with one gold span: both right, one gold span found.
    pairs = make([([words(0, 3)], [(words(0, 1), 2.0), (words(2, 3), 1.0)])])
    values = span_metrics(pairs, criteria=["A"], threshold=0.0).values
    assert values["evidence_iou_precision"] == values["evidence_iou_recall"] == 1.0


def test_means_are_over_criteria_with_gold_and_micro_pools_all_pairs():
    pairs = make([*WORKED, ([words(0, 0)], []), ([], [])], criteria=[*"AAAA", "B", "C"])
    metrics = span_metrics(pairs, criteria=["A", "B", "C"], threshold=0.0)
    values = metrics.values
    assert values["evidence_n_criteria_in_macro"] == 2
    assert values["per_criterion/B/evidence_iou_f1"] == 0.0
    assert values["per_criterion/B/evidence_iou_precision"] is None
    assert metrics.undefined["per_criterion/B/evidence_iou_precision"] == "nothing predicted"
    assert metrics.undefined["per_criterion/C/evidence_iou_f1"] == "no pair with evidence"
    assert metrics.undefined["per_criterion/B/unanswerable/evidence_token_f1"] == (
        "no pair without evidence"
    )
    assert values["evidence_iou_f1"] == pytest.approx((6 / 7 + 0) / 2)
    assert values["evidence_iou_precision"] == pytest.approx((3 / 4 + 0) / 2)
    assert values["evidence_iou_f1_micro"] == pytest.approx(3 / 4)
    assert values["evidence_exact_match"] == pytest.approx((0.5 + 0 + 1) / 3)


def test_without_any_gold_span_nothing_is_silently_zero():
    metrics = span_metrics(make([([], []), ([], [])]), criteria=["A"], threshold=0.0)
    assert metrics.values["evidence_iou_f1"] is None
    assert metrics.values["evidence_detection_average_precision"] is None
    assert metrics.values["evidence_exact_match"] == 1.0
    assert set(metrics.undefined) == {k for k, v in metrics.values.items() if v is None}


@pytest.mark.parametrize(
    ("one", "other", "right"),
    [
        (words(0, 1), words(0, 1), True),
        (words(0, 1), words(1, 2), False),
        (words(0, 1), words(0, 3), True),
        (words(0, 1), words(0, 4), False),
        (words(0, 0), words(1, 1), False),
        ((1, 4), words(0, 1), True),
        ((2, 3), words(0, 0), False),
    ],
)
def test_a_span_is_right_if_half_of_the_words_they_touch_are_shared(one, other, right):
    assert make([([other], [(one, 1.0)])]).overlaps[0].tolist() == [[right]]


CHINESE = (
    "今天下雨了。我整夜都睡不着，不知道怎么办。"  # 20 words; punctuation belongs to the word before
)


@pytest.mark.parametrize(
    ("text", "gold", "predicted", "right", "token_f1", "set_token_f1"),
    [
        # 整夜都睡不着 against 今天下雨了: no word shared.
        (CHINESE, (7, 13), (0, 5), False, 0.0, 0.0),
        # Against 都睡不着，不知: 4 of the 8 words of both are shared, of 6 and 6.
        (CHINESE, (7, 13), (9, 16), True, 4 / 6, 4 / 6),
        # Against 睡不着，不知: 3 of 8 shared, of 6 and 5.
        (CHINESE, (7, 13), (10, 16), False, 6 / 11, 6 / 11),
        # With or without the comma: the same words.
        (CHINESE, (7, 13), (7, 14), True, 1.0, 1.0),
        # Thai, grapheme clusters ไม่หลับ (ไ ม่ ห ลั บ) against หลับทั้ง (ห ลั บ ทั้ ง): 3 of 7 shared.
        ("นอนไม่หลับทั้งคืน", (3, 10), (6, 14), False, 3 / 5, 3 / 5),
        # Mixed: "so sad 很累" against "sad 很累": 3 of 4 shared.
        ("I am so sad 很累", (5, 14), (8, 14), True, 6 / 7, 6 / 7),
    ],
)
def test_words_of_scripts_without_spaces_are_counted_as_by_hand(
    text, gold, predicted, right, token_f1, set_token_f1
):
    pairs = make([([gold], [(predicted, 1.0)])], text=text)
    values = span_metrics(pairs, criteria=["A"], threshold=0.0).values
    assert values["evidence_iou_f1"] == float(right)
    assert values["evidence_token_f1"] == pytest.approx(token_f1)
    assert values["evidence_set_token_f1"] == pytest.approx(set_token_f1)


def test_the_fitted_threshold_has_the_best_iou_f1_of_all():
    rng = np.random.default_rng(3)
    pairs = make(random_pairs(rng, 40), criteria=["A", "B"] * 20)
    fitted = fit_null_threshold(pairs, criteria=["A", "B", "C"])

    def f1(threshold: float) -> float:
        return span_metrics(pairs, criteria=["A", "B", "C"], threshold=threshold).values[
            "evidence_iou_f1"
        ]

    candidates = [float(-score) for score in pairs.scores.ravel() if np.isfinite(score)]
    everywhere = [value + shift for value in candidates for shift in (-1e-6, 1e-6)]
    assert f1(fitted) == pytest.approx(max(map(f1, everywhere)))
    assert min(map(f1, everywhere)) < f1(fitted) - 0.1


def test_where_there_is_no_answer_any_span_is_wrong_and_none_is_no_answer():
    text = "I sleep . the"
    pairs = make(
        [([], [((8, 9), 1.0)]), ([(10, 13)], []), ([(10, 13)], [((10, 13), 1.0)])], text=text
    )
    values = span_metrics(pairs, criteria=["A"], threshold=0.0).values
    assert values["unanswerable/evidence_token_f1"] == 0.0
    assert (
        values["answerable/evidence_exact_match"] == values["answerable/evidence_token_f1"] == 0.5
    )


def test_detection_ranks_scores_of_any_size():
    rows = [([], [(words(0, 0), 300.0)]), ([words(0, 0)], [(words(0, 0), 300.5)]), ([], [])]
    values = span_metrics(make(rows), criteria=["A"], threshold=0.0).values
    assert values["evidence_detection_average_precision"] == 1.0
    rows[1], rows[2] = ([], [(words(0, 0), -1.0)]), ([words(0, 0)], [])
    values = span_metrics(make(rows), criteria=["A"], threshold=0.0).values
    assert values["evidence_detection_average_precision"] == pytest.approx(1 / 3)


def test_of_equally_good_thresholds_the_nearest_to_zero_wins():
    pairs = make([([words(0, 0)], [(words(0, 0), 6.0)]), ([], [(words(0, 0), 2.0)])])
    assert fit_null_threshold(pairs, criteria=["A"]) == -4.0
    pairs = make([([words(0, 0)], [(words(0, 0), 6.0)]), ([], [(words(0, 0), -2.0)])])
    assert fit_null_threshold(pairs, criteria=["A"]) == 0.0
    assert fit_null_threshold(make([([], [(words(0, 0), 5.0)])]), criteria=["A"]) == 0.0
    both = make([([words(0, 0)], [(words(0, 0), 1.0)]), ([], [(words(0, 0), -1.0)])])
    assert str(fit_null_threshold(both, criteria=["A"])) == "0.0"


def test_where_every_pair_has_evidence_detection_has_no_figure_that_always_some_would_reach():
    rows = [([words(0, 0)], [(words(0, 7), 1.0)]) for _ in range(3)]
    metrics = span_metrics(make(rows), criteria=["A"], threshold=0.0)
    for name in ("evidence_detection_f1", "evidence_detection_precision"):
        assert metrics.undefined[name] == "no pair without evidence"
        assert metrics.undefined[f"{name}_micro"] == "no pair without evidence"


def erasers_own(rows):
    """ERASER's partial_match_score at 0.5, as its paper and its docstring describe it."""
    right, predicted, gold = [], [], []
    for gold_spans, found in rows:
        spans = [set(range(*span)) for span, _ in found]
        golds = [set(range(*span)) for span in gold_spans]
        best = [max((len(s & g) / len(s | g) for g in golds), default=0.0) for s in spans]
        right.append(sum(value >= 0.5 for value in best))
        predicted.append(len(spans))
        gold.append(len(golds))

    def f1(precision, recall):
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    macro = [
        np.mean([r / n for r, n in zip(right, counts, strict=True) if n])
        for counts in (predicted, gold)
    ]
    return f1(sum(right) / sum(predicted), sum(right) / sum(gold)), f1(*macro)


def test_erasers_own_figures_pool_all_spans_or_average_the_pairs():
    rows = [
        ([words(0, 0), words(4, 4)], [(words(0, 0), 3.0)]),  # words of one length: code points do
        ([words(1, 1)], [(words(1, 1), 2.0), (words(5, 5), 1.0), (words(6, 6), 0.5)]),
        ([], [(words(2, 2), 1.0)]),
        ([words(3, 3)], []),
    ]
    pooled, instance = erasers_own(rows)
    names = ["A", "B", "A", "B"]
    values = span_metrics(make(rows, criteria=names), criteria=["A", "B"], threshold=0.0).values
    assert values["evidence_eraser_iou_f1_pooled"] == pytest.approx(pooled)
    assert values["evidence_eraser_iou_f1_instance"] == pytest.approx(instance)
    assert pooled != instance != values["evidence_iou_f1"]


def test_intervals_are_those_of_the_figures_without_each_group():
    rng = np.random.default_rng(0)
    rows = random_pairs(rng, 90)
    posts = [f"p{row // 3}" for row in range(90)]
    names = ["AB"[row % 2] for row in range(90)]
    criteria = ["A", "B"]
    samples = span_samples(
        make(rows, criteria=names, posts=posts), criteria=criteria, threshold=0.0
    )
    without = []
    for name in np.unique(posts):
        kept = [at for at in range(90) if posts[at] != name]
        pairs = make([rows[at] for at in kept], criteria=[names[at] for at in kept])
        without.append(span_metrics(pairs, criteria=criteria, threshold=0.0).values)
    got = samples.intervals().values
    average_precision = "evidence_detection_average_precision"
    for key in ("evidence_iou_f1", "evidence_token_f1", "evidence_char_f1", average_precision):
        expected = [values[key] for values in without]
        np.testing.assert_allclose(samples.values[key][1:], expected, atol=1e-12)
        assert 0 < got[f"{key}_ci_low"] < samples.values[key][0] < got[f"{key}_ci_high"] < 1


def test_intervals_do_not_depend_on_the_order_of_pairs():
    rows = random_pairs(np.random.default_rng(1), 30)
    posts = [f"p{row // 3}" for row in range(30)]

    def interval(order):
        pairs = make([rows[at] for at in order], posts=[posts[at] for at in order])
        return span_samples(pairs, criteria=["A"], threshold=0.0).intervals().values

    assert interval(range(30)) == pytest.approx(interval(range(29, -1, -1)))


def test_scores_that_rise_and_criteria_that_are_unknown_are_refused():
    with pytest.raises(ValueError, match="must fall"):
        make([([], [(words(0, 0), 1.0), (words(1, 1), 2.0)])])
    with pytest.raises(ValueError, match="criteria"):
        span_metrics(make([([], [])], criteria=["Z"]), criteria=["A"], threshold=0.0)


TOKEN = st.integers(0, 7)
SPAN = st.tuples(TOKEN, TOKEN).map(lambda ends: words(min(ends), max(ends)))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.lists(SPAN, max_size=2), st.lists(SPAN, max_size=2)), min_size=1, max_size=5
    )
)
def test_every_figure_is_a_share_and_perfect_predictions_score_one(rows):
    pairs = [(gold, [(span, 2.0 - at) for at, span in enumerate(found)]) for gold, found in rows]
    for name, value in span_metrics(make(pairs), criteria=["A"], threshold=9.0).values.items():
        assert "n_" in name or value is None or 0.0 <= value <= (2.0 if "eraser" in name else 1.0)
    perfect = [(gold, [(span, 2.0 - at) for at, span in enumerate(gold)]) for gold, _ in rows]
    values = span_metrics(make(perfect), criteria=["A"], threshold=9.0).values
    for name in ("evidence_exact_match", "evidence_iou_f1", "evidence_char_f1"):
        assert values[name] in (None, pytest.approx(1.0))


def random_pairs(rng: np.random.Generator, count: int):
    """Pairs of which a third has evidence; better predictions have better scores, mostly."""
    rows = []
    for _ in range(count):
        gold = [words(2, 4)] if rng.random() < 0.4 else []
        first = int(rng.integers(0, 4))
        score = float(rng.normal() + (2.0 if gold and first == 2 else 0.0))
        rows.append((gold, [(words(first, first + 2), score)]))
    return rows
