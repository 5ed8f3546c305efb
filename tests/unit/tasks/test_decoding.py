import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from psy_agents_noaug.data.alignment import Span
from psy_agents_noaug.data.windows import NO_OFFSET, encode_windows
from psy_agents_noaug.errors import NonFiniteError
from psy_agents_noaug.tasks.evidence import decoding
from psy_agents_noaug.tasks.evidence.decoding import NO_SPAN, SpanCandidates, decode_spans

NEVER = -np.inf


def decode(log_odds, offsets, pairs=None, **changes):
    options = {"n_best_size": 20, "max_answer_length": 30, "max_spans": 3}
    pairs = np.zeros(len(log_odds), dtype=np.int64) if pairs is None else np.asarray(pairs)
    found = decode_spans(
        torch.from_numpy(np.asarray(log_odds, dtype=np.float32)),
        torch.from_numpy(np.asarray(offsets, dtype=np.int64)),
        torch.from_numpy(pairs),
        n_pairs=int(pairs.max()) + 1,
        **(options | changes),
    )
    return SpanCandidates(*(values.numpy() for values in found))


def spans(found, pair: int = 0) -> list[tuple[int, int, float]]:
    rows = zip(found.starts[pair], found.ends[pair], found.scores[pair], strict=True)
    return [(int(a), int(b), float(score)) for a, b, score in rows if a != NO_SPAN]


# Four tokens of a post after [CLS]; token k covers characters 2k to 2k + 1.
OFFSETS = [[NO_OFFSET, NO_OFFSET], [2, 3], [4, 5], [6, 7], [8, 9]]


def window(starts: dict[int, float], ends: dict[int, float]) -> list[list[float]]:
    return [[starts.get(at, NEVER), ends.get(at, NEVER)] for at in range(5)]


def test_the_best_spans_that_do_not_overlap_come_best_first():
    found = decode([window({1: 3, 3: 1, 2: 0}, {2: 2, 4: 1, 3: 0.5})], [OFFSETS])
    # 1-2 scores 5, 3-4 scores 2; 1-4, 1-3, 2-4 ... overlap one of them.
    assert spans(found) == [(2, 5, 5.0), (6, 9, 2.0)]


def test_an_end_never_comes_before_its_start_nor_too_far_after_it():
    logits = [window({3: 9, 1: 1}, {1: 8, 4: 2})]
    assert spans(decode(logits, [OFFSETS]))[0] == (6, 9, 11.0)
    assert spans(decode(logits, [OFFSETS], max_answer_length=1)) == [(2, 3, 9.0)]


def test_n_best_size_limits_the_borders_that_are_combined():
    logits = [window({1: 5, 2: 4}, {1: 1, 4: 3})]
    assert spans(decode(logits, [OFFSETS], n_best_size=1)) == [(2, 9, 8.0)]


def test_windows_of_a_pair_compete_and_a_span_in_both_counts_once():
    logits = [window({1: 1}, {1: 1}), window({1: 2, 4: 1}, {1: 2, 4: 1}), window({2: 9}, {2: 9})]
    found = decode(logits, [OFFSETS] * 3, pairs=[0, 0, 1])
    assert spans(found, 0) == [(2, 3, 4.0), (8, 9, 2.0)]
    assert spans(found, 1) == [(4, 5, 18.0)]


def test_equal_scores_give_the_earliest_and_shortest_span_in_any_order_of_windows():
    one, other = window({2: 1, 1: 1}, {2: 1, 1: 1}), window({1: 1}, {1: 1, 4: 1})
    first = decode([one, other], [OFFSETS] * 2, max_spans=1)
    second = decode([other, one], [OFFSETS] * 2, max_spans=1)
    assert spans(first) == spans(second) == [(2, 3, 2.0)]


def test_a_pair_without_a_possible_span_has_none():
    found = decode([window({}, {})], [OFFSETS])
    assert found.starts.tolist() == found.ends.tolist() == [[NO_SPAN] * 3]
    assert (found.scores == NEVER).all()


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(score):
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        decode([window({1: 1}, {1: 1, 2: score})], [OFFSETS])


def reference(log_odds, offsets, pairs, *, n_best_size, max_answer_length, max_spans):
    """Return (start, end, score) of the spans of each pair, found one by one."""
    candidates = [[] for _ in range(int(pairs.max()) + 1)]
    for scores, chars, pair in zip(log_odds.astype(np.float64), offsets, pairs, strict=True):
        firsts, lasts = (
            [at for at in np.argsort(-scores[:, k], kind="stable") if scores[at, k] > NEVER]
            for k in (0, 1)
        )
        candidates[pair] += [
            (-(scores[first, 0] + scores[last, 1]), chars[first, 0], chars[last, 1])
            for first in firsts[:n_best_size]
            for last in lasts[:n_best_size]
            if first <= last < first + max_answer_length
        ]
    chosen = [[] for _ in candidates]
    for found, taken in zip(candidates, chosen, strict=True):
        for negative, start, end in sorted(found):
            if len(taken) < max_spans and all(end <= a or start >= b for a, b, _ in taken):
                taken.append((int(start), int(end), float(-negative)))
    return chosen


@settings(deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_windows=st.integers(1, 6),
    n_tokens=st.integers(1, 12),
    n_best_size=st.integers(1, 14),
    max_answer_length=st.integers(1, 12),
    max_spans=st.integers(1, 5),
    n_levels=st.sampled_from([2, 4, 10**6]),
    float64_devices=st.sampled_from([("cpu",), ()]),
)
def test_windows_together_give_the_spans_of_each_alone(
    seed, n_windows, n_tokens, n_best_size, max_answer_length, max_spans, n_levels, float64_devices
):
    """Scores have many ties, and tokens may share characters, as those of a sentence or an emoji do."""
    chance = np.random.default_rng(seed)
    shape = (n_windows, n_tokens, 2)
    log_odds = (chance.integers(0, n_levels, shape) / n_levels - 0.5).astype(np.float32) * 7
    log_odds[(log_odds == 0) & (chance.random(shape) < 0.5)] = -0.0
    starts = np.cumsum(chance.integers(0, 3, shape[:2]), axis=1)
    ends = np.maximum.accumulate(starts + chance.integers(1, 4, shape[:2]), axis=1)
    offsets = np.stack([starts, ends], axis=2)
    log_odds[chance.random(shape) < 0.3] = NEVER
    outside = chance.random(shape[:2]) < 0.1
    log_odds[outside], offsets[outside] = NEVER, NO_OFFSET
    _, pairs = np.unique(chance.integers(0, n_windows, n_windows), return_inverse=True)
    options = {
        "n_best_size": n_best_size,
        "max_answer_length": max_answer_length,
        "max_spans": max_spans,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_FLOAT64_DEVICES", float64_devices)
        found = decode(log_odds, offsets, pairs, **options)
    expected = reference(log_odds, offsets, pairs, **options)
    assert [spans(found, pair) for pair in range(len(expected))] == expected
    assert found.scores.dtype == np.float64
    assert ((found.scores == NEVER) == (found.starts == NO_SPAN)).all()
    assert ((found.ends == NO_SPAN) == (found.starts == NO_SPAN)).all()


TEXT = st.text(
    st.one_of(
        st.sampled_from("ab sleepTn'.,!🐕\U0001f468\u200d\U0001f469é\u0301 \r\n\t\xa0ß中"),
        st.characters(exclude_categories=["Cs", "Cn", "Co"]),
    ),
    min_size=1,
    max_size=80,
)


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def tokenizer(request, tiny_encoder, byte_level_tokenizer):
    if request.param == "bpe":
        return byte_level_tokenizer
    return AutoTokenizer.from_pretrained(tiny_encoder)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(post=TEXT, data=st.data(), room=st.integers(1, 40))
def test_all_mass_on_the_gold_span_gives_its_characters_back(tokenizer, post, data, room):
    """From any span of the post to windows and back: the characters of its tokens, exactly."""
    start = data.draw(st.integers(0, len(post) - 1))
    end = data.draw(st.integers(start + 1, len(post)))
    span = Span(start, end)
    frame = encode_windows(tokenizer, ["lamp"], [""], [[]], max_length=99, stride=0).longest_frame
    stride = data.draw(st.integers(0, room - 1))
    windows = encode_windows(
        tokenizer, ["lamp"], [post], [[span]], max_length=frame + room, stride=stride
    )
    whole = encode_windows(tokenizer, ["lamp"], [post], [[span]], max_length=999, stride=0)
    borders = [pair for pair in whole.offsets[0].tolist() if pair[0] != NO_OFFSET]
    touched = [(a, b) for a, b in borders if a < end and b > start]
    for row in {int(window) for window in windows.gold[:, 0]}:
        offsets = windows.framed_offsets(row, windows.offsets[0])
        logits = np.full((1, len(offsets), 2), NEVER)
        for _, first, last in windows.gold[windows.gold[:, 0] == row]:
            logits[0, first, 0] = logits[0, last, 1] = 5.0
        found = decode(logits, offsets[None], max_answer_length=999)
        assert spans(found) == [(touched[0][0], touched[-1][1], 10.0)]
        if any(a == start for a, _ in touched) and any(b == end for _, b in touched):
            assert post[found.starts[0, 0] : found.ends[0, 0]] == post[start:end]
    assert bool(touched) == (windows.longest_gold > 0)
    assert len(windows.gold) > 0 or bool(windows.unreachable)
