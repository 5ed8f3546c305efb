import math

import ir_measures
import numpy as np
import pytest

from psy_agents_noaug.metrics.classification import PairPredictions
from psy_agents_noaug.metrics.ranking import (
    mean_figures,
    ranking_metrics,
    topic_figures,
    trec_order,
)

MEASURES = {
    "ap": ir_measures.AP,
    "r_precision": ir_measures.Rprec,
    "p_at_10": ir_measures.P @ 10,
    "ndcg_at_1000": ir_measures.nDCG @ 1000,
}


def drawn(seed: int, *, n: int = 1500, decimals: int | None = None) -> PairPredictions:
    """Sentences of 60 authors and two criteria; with few decimals most scores tie."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(2 * n) < 0.05).astype(np.int64)
    scores = np.clip(rng.normal(0.3 + 0.3 * labels, 0.2), 0, 1).astype(np.float32)
    if decimals is not None:
        scores = scores.round(decimals)
    criteria = np.repeat(["A.1", "A.2"], n)
    authors = np.array([f"u{number}" for number in rng.integers(60, size=2 * n)])
    return PairPredictions(labels, scores, criteria, authors)


def ids_of(pairs: PairPredictions) -> np.ndarray:
    # "p10" is before "p9": ties are decided by the order of texts, not of numbers.
    n = len(pairs.labels) // 2
    return np.array([f"p{number % n}" for number in range(2 * n)])


@pytest.mark.parametrize(("seed", "decimals"), [(0, None), (1, 1), (2, 2)])
def test_figures_are_those_of_ir_measures_also_where_scores_tie(seed, decimals):
    pairs = drawn(seed, decimals=decimals)
    ids = ids_of(pairs)
    found = ranking_metrics(pairs, ids, criteria=["A.1", "A.2"]).values
    rows = list(zip(pairs.criterion_ids.tolist(), ids.tolist(), strict=True))
    qrels = [
        ir_measures.Qrel(topic, doc, label)
        for (topic, doc), label in zip(rows, pairs.labels.tolist(), strict=True)
    ]
    run = []
    for topic in ("A.1", "A.2"):
        own = pairs.criterion_ids == topic
        scores, docs = pairs.probabilities[own], ids[own]
        kept = trec_order(scores, docs)[:1000]
        run += [ir_measures.ScoredDoc(topic, docs[k], float(scores[k])) for k in kept]
    expected = ir_measures.calc(list(MEASURES.values()), qrels, run)
    for name, measure in MEASURES.items():
        assert found[name] == pytest.approx(expected.aggregated[measure], abs=1e-9)
    per_topic = {(row.query_id, row.measure): row.value for row in expected.per_query}
    for topic in ("A.1", "A.2"):
        for name, measure in MEASURES.items():
            value = found[f"per_label/{topic}/{name}"]
            assert value == pytest.approx(per_topic[topic, measure], abs=1e-9)


def test_a_worked_example():
    # Relevant at ranks 1 and 3, and one that is not ranked.
    found = topic_figures(np.array([1.0, 0.0, 1.0, 0.0]), np.ones(3))
    assert found["ap"] == pytest.approx((1 / 1 + 2 / 3) / 3)
    assert found["r_precision"] == pytest.approx(2 / 3)
    assert found["p_at_10"] == pytest.approx(2 / 10)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert found["ndcg_at_1000"] == pytest.approx((1 + 1 / math.log2(4)) / ideal)


def test_equal_scores_are_ranked_by_falling_id_and_single_precision_makes_them_equal():
    ids = np.array(["s1", "s3", "s2", "s4"])
    assert ids[trec_order([0.5, 0.5, 0.5 + 1e-12, 0.9], ids)].tolist() == ["s4", "s3", "s2", "s1"]


def test_what_is_ranked_below_a_thousand_does_not_count():
    gains = np.zeros(1200)
    gains[[0, 1100]] = 1
    found = topic_figures(gains, np.ones(2))
    assert found["ap"] == 0.5
    assert found["ndcg_at_1000"] == pytest.approx(1 / (1 + 1 / math.log2(3)))


def test_a_criterion_without_a_relevant_sentence_is_left_out_of_the_means():
    found = mean_figures({"A.1": topic_figures(np.array([1.0]), np.ones(1)), "A.2": None})
    assert (found.values["n_topics"], found.values["ap"]) == (1, 1.0)
    assert found.undefined["per_label/A.2/ap"] == "no relevant document"
    assert mean_figures({"A.1": None}).values["ap"] is None


def test_the_support_of_a_criterion_is_the_number_of_its_relevant_sentences():
    pairs = drawn(4)
    found = ranking_metrics(pairs, ids_of(pairs), criteria=["A.1", "A.2", "A.3"]).values
    n_relevant = [int(pairs.labels[pairs.criterion_ids == name].sum()) for name in ("A.1", "A.2")]
    assert [found[f"per_label/A.{k}/support"] for k in (1, 2, 3)] == [*n_relevant, 0]
    assert not any("_ci_" in key for key in found)
