import warnings

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from psy_agents_noaug.metrics.squad import exact_match, normalize_answer, token_f1
from psy_agents_noaug.utils.words import has_unspaced_script

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchmetrics.functional.text import squad

WORDS = st.sampled_from(["I", "the", "A", "an", "sleep", "sleep,", "can't", "—", "é", "?!", "🐕"])
ANSWER = st.one_of(st.text(max_size=20), st.lists(WORDS, max_size=8).map(" ".join))


@pytest.mark.parametrize(
    ("prediction", "golds", "exact", "f1"),
    [
        ("I can't sleep.", ["i cant SLEEP"], 1.0, 1.0),
        ("The sleep", ["sleep a"], 1.0, 1.0),
        ("sleep at night", ["sleep", "at night now"], 0.0, 2 / 3),
        ("sleep sleep", ["sleep"], 0.0, 2 / 3),
        ("sleep", ["fatigue"], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("", ["sleep"], 0.0, 0.0),
        ("sleep", [], 0.0, 0.0),
        # Official script: a gold answer of articles and punctuation alone is no answer.
        ("", ["the ..."], 1.0, 1.0),
        ("the", ["sleep", "!"], 0.0, 0.0),
        # Scripts without spaces: 睡不着 against 都睡不着, 3 of 3 and of 4; punctuation does not count.
        ("睡不着。", ["睡不着", "都"], 1.0, 1.0),
        ("睡不着，", ["都睡不着"], 0.0, 6 / 7),
        ("นอน", ["นอนไม่"], 0.0, 6 / 8),
        ("so 累", ["so sad 很累"], 0.0, 4 / 6),
    ],
)
def test_worked_cases_score_as_by_hand(prediction, golds, exact, f1):
    assert exact_match(prediction, golds) == exact
    assert token_f1(prediction, golds) == pytest.approx(f1)


@settings(deadline=None, max_examples=150)
@given(prediction=ANSWER, golds=st.lists(ANSWER, min_size=1, max_size=3))
def test_both_scores_are_those_of_torchmetrics(prediction, golds):
    # torchmetrics takes runs without spaces for words in every script.
    assume(not any(has_unspaced_script(text) for text in (prediction, *golds)))
    # torchmetrics scores gold answers that normalise to nothing, SQuAD 2.0 leaves them out.
    golds = [gold for gold in golds if normalize_answer(gold)] or [""]
    theirs = squad(
        [{"prediction_text": prediction, "id": "1"}],
        [{"answers": {"answer_start": [0] * len(golds), "text": golds}, "id": "1"}],
    )
    assert exact_match(prediction, golds) == float(theirs["exact_match"]) / 100
    assert token_f1(prediction, golds) == pytest.approx(float(theirs["f1"]) / 100, abs=1e-6)
