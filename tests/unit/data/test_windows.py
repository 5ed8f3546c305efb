import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from psy_agents_noaug.data.alignment import Span
from psy_agents_noaug.data.windows import NO_OFFSET, UnreachableSpan, encode_windows
from psy_agents_noaug.errors import ConfigError

FIRST = "lamp"
POST = "The bus was late again this morning. " * 6


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def tokenizer(request, tiny_encoder, byte_level_tokenizer):
    if request.param == "bpe":
        return byte_level_tokenizer
    return AutoTokenizer.from_pretrained(tiny_encoder)


def encode(tokenizer, post, spans=(), *, room=10, stride=4, first=FIRST):
    """Windows of `room` tokens of the post."""
    framed = len(tokenizer([first], ["x"]).input_ids[0]) - len(
        tokenizer("x", add_special_tokens=False).input_ids
    )
    return encode_windows(
        tokenizer, [first], [post], [list(spans)], max_length=framed + room, stride=stride
    )


def row(windows, index: int) -> tuple[list[int], np.ndarray]:
    """Ids and offsets of a window; its pair is the last to begin at it or before."""
    pair = int(np.searchsorted(windows.starts, index, side="right")) - 1
    ids, _ = windows.rows.row(index)
    return ids.tolist(), windows.framed_offsets(index, windows.offsets[pair])


def shown(windows, index: int, post: str) -> list[str]:
    return [post[start:end] for start, end in row(windows, index)[1] if start != NO_OFFSET]


TEXT = st.text(
    st.sampled_from("ab sleepTn'.🐕\U0001f468\u200d\U0001f469é\u0301 \n\r\t[]\x00\u200b"),
    max_size=60,
)
QUIET = settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUIET
@given(post=TEXT, room=st.integers(2, 9), data=st.data())
def test_windows_are_those_that_the_tokenizer_cuts(tokenizer, post, room, data):
    stride = data.draw(st.integers(0, room - 1))
    windows = encode(tokenizer, post, room=room, stride=stride)
    theirs = tokenizer(
        [FIRST],
        [post],
        truncation="only_second",
        max_length=int(windows.longest_frame + room),
        stride=stride,
        return_overflowing_tokens=True,
    )
    ours = [row(windows, index)[0] for index in range(len(windows.cut))]
    assert ours == theirs.input_ids


@QUIET
@given(post=TEXT)
def test_offsets_cover_visible_characters_alone_and_no_token_is_cut_from_its_accents(
    tokenizer, post
):
    windows = encode(tokenizer, post, room=200)
    offsets = row(windows, 0)[1]
    offsets = offsets[offsets[:, 0] != NO_OFFSET]
    covered = {at for start, end in offsets.tolist() for at in range(start, end)}
    assert (np.diff(offsets, axis=1) > 0).all()
    assert (np.diff(offsets[:, 0]) >= 0).all()
    assert (np.diff(offsets[:, 1]) >= 0).all()
    for start, end in offsets.tolist():
        assert not post[start].isspace()
        assert not post[end - 1].isspace()
        # What follows a token is a space, the end, or another token's.
        assert end == len(post) or post[end].isspace() or end in covered


@QUIET
@given(
    words=st.lists(st.text("abé🐕", min_size=1, max_size=4), min_size=1, max_size=30),
    room=st.integers(3, 12),
    data=st.data(),
)
def test_every_span_of_up_to_stride_plus_one_tokens_is_whole_in_a_window(
    tokenizer, words, room, data
):
    stride = data.draw(st.integers(0, room - 1))
    post = " ".join(words)
    whole = encode(tokenizer, post, room=1000)
    offsets = row(whole, 0)[1]
    offsets = offsets[offsets[:, 0] != NO_OFFSET]
    first = data.draw(st.integers(0, len(offsets) - 1))
    last = data.draw(st.integers(first, len(offsets) - 1))
    span = Span(int(offsets[first, 0]), int(offsets[last, 1]))
    windows = encode(tokenizer, post, [span], room=room, stride=stride)
    n_tokens = windows.longest_gold
    if windows.unreachable:
        assert windows.unreachable == [UnreachableSpan(0, n_tokens)]
        assert n_tokens > stride + 1
        # What is said to reach it does.
        enough = encode(tokenizer, post, [span], room=max(room, n_tokens), stride=n_tokens - 1)
        assert not enough.unreachable
    for window, start, end in windows.gold.tolist():
        own = row(windows, window)[1]
        assert (own[start, 0], own[end, 1]) == (span.start_char, span.end_char)
        assert not windows.cut[window]
    reached = set(windows.gold[:, 0].tolist())
    for window in range(len(windows.cut)):
        own = row(windows, window)[1]
        own = own[own[:, 0] != NO_OFFSET]
        touches = bool(((own[:, 0] < span.end_char) & (own[:, 1] > span.start_char)).any())
        assert windows.cut[window] == (touches and window not in reached)


def test_windows_never_cross_pairs_and_each_has_its_own_first_text(tiny_encoder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    windows = encode_windows(
        tokenizer,
        ["lamp", "dog"],
        [POST, "short"],
        [[], []],
        max_length=20,
        stride=4,
    )
    assert windows.starts[0] == 0
    assert windows.starts[1] == len(windows.cut) - 1 > 2
    begins = {first: tokenizer([first], [""]).input_ids[0][:-1] for first in ("lamp", "dog")}
    rows = [row(windows, at)[0] for at in range(len(windows.cut))]
    assert all(ids[: len(begins["lamp"])] == begins["lamp"] for ids in rows[:-1])
    assert rows[-1][: len(begins["dog"])] == begins["dog"]
    assert "".join(shown(windows, len(rows) - 1, "short")) == "short"


def test_a_post_without_tokens_is_one_window_without_any(tiny_encoder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    windows = encode(tokenizer, "\u200b\x00", [Span(0, 1)])
    assert len(windows.cut) == 1
    assert (row(windows, 0)[1] == NO_OFFSET).all()
    assert windows.unreachable == [UnreachableSpan(0, 0)]


def test_a_stride_that_leaves_no_step_is_refused(tiny_encoder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    with pytest.raises(ConfigError, match=r"`stride` must be less than the 10 tokens"):
        encode(tokenizer, POST, room=10, stride=10)
    assert len(encode(tokenizer, "a " * 12, room=10, stride=9).cut) > 1
