import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from psy_agents_noaug.data.windows import encode_windows
from psy_agents_noaug.errors import ConfigError


def encode_pairs(tokenizer, first, second, *, max_length):
    """The first window of each pair."""
    return encode_windows(tokenizer, first, second, max_length=max_length, stride=None).rows


SHORT, LONG = "lamp", "The bus was late again this morning."


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder):
    return AutoTokenizer.from_pretrained(tiny_encoder)


@pytest.fixture
def pairs(tokenizer):
    """Three pairs; the second and the third text of the last two differ in length."""
    return encode_pairs(tokenizer, [SHORT] * 3, [SHORT, LONG, LONG + LONG], max_length=32)


def row(encoded, index: int) -> tuple[list[int], list[int]]:
    ids, types = encoded.row(index)
    return ids.tolist(), types.tolist()


def test_a_pair_is_cls_first_sep_second_sep_with_segments(tokenizer, pairs):
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    first, second = (tokenizer(text, add_special_tokens=False).input_ids for text in (SHORT, LONG))
    ids, segments = row(pairs, 1)
    assert ids == [cls, *first, sep, *second, sep]
    assert segments == [0] * (len(first) + 2) + [1] * (len(second) + 1)


def test_a_text_alone_is_cls_text_sep(tokenizer):
    encoded = encode_pairs(tokenizer, [None, SHORT], [LONG, LONG], max_length=32)
    assert row(encoded, 0) == (tokenizer(LONG).input_ids, [0] * len(tokenizer(LONG).input_ids))
    assert row(encoded, 1)[0] == tokenizer(SHORT, LONG).input_ids


def test_lengths_are_those_of_the_rows(pairs):
    assert len(pairs) == 3
    assert pairs.lengths.tolist() == [len(row(pairs, index)[0]) for index in range(3)]
    assert len(set(pairs.lengths.tolist())) == 3


def test_the_second_text_alone_is_truncated_and_flagged(tokenizer):
    whole = encode_pairs(tokenizer, [LONG, LONG], [SHORT, LONG], max_length=100)
    shorter = int(whole.lengths[1]) - 1
    exact = encode_pairs(tokenizer, [LONG, LONG], [SHORT, LONG], max_length=shorter + 1)
    cut = encode_pairs(tokenizer, [LONG, LONG], [SHORT, LONG], max_length=shorter)
    assert whole.truncated.tolist() == exact.truncated.tolist() == [False, False]
    assert cut.truncated.tolist() == [False, True]
    full = row(whole, 1)[0]
    assert row(cut, 0) == row(whole, 0)
    assert row(cut, 1)[0] == [*full[:-2], full[-1]]


@pytest.mark.parametrize("room", [1, 2])
def test_a_length_without_room_for_the_second_text_is_refused(tokenizer, room):
    needed = len(tokenizer(LONG, add_special_tokens=False).input_ids) + 3
    encoded = encode_pairs(tokenizer, [LONG], [LONG], max_length=needed + room)
    assert encoded.lengths.tolist() == [needed + room]
    with pytest.raises(ConfigError, match=rf"`model\.max_length` must exceed {needed} tokens"):
        encode_pairs(tokenizer, [SHORT, LONG], ["", ""], max_length=needed)


def test_a_batch_is_padded_to_its_longest_row(tokenizer, pairs):
    batch = pairs.pad([2, 0])
    longest, shortest = int(pairs.lengths[2]), int(pairs.lengths[0])
    assert {name: tuple(value.shape) for name, value in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (2, longest)
    )
    assert {value.dtype for value in batch.values()} == {torch.long}
    assert batch["attention_mask"].sum(dim=1).tolist() == [longest, shortest]
    assert batch["input_ids"][1].tolist() == row(pairs, 0)[0] + [tokenizer.pad_token_id] * (
        longest - shortest
    )
    assert batch["token_type_ids"][0].tolist() == row(pairs, 2)[1]
    assert batch["token_type_ids"][1, shortest:].sum() == 0
    assert pairs.pad([0])["input_ids"].shape == (1, shortest)


def test_the_padding_is_the_tokenizers(tiny_encoder):
    other = AutoTokenizer.from_pretrained(tiny_encoder)
    other.pad_token = "[MASK]"
    batch = encode_pairs(other, [SHORT] * 2, [SHORT, LONG], max_length=64).pad([0, 1])
    assert batch["input_ids"][0, -1] == other.mask_token_id != 0


def test_an_encoder_without_segments_gets_none(tiny_encoder):
    other = AutoTokenizer.from_pretrained(tiny_encoder)
    other.model_input_names = ["input_ids", "attention_mask"]
    encoded = encode_pairs(other, [SHORT], [LONG], max_length=64)
    assert set(encoded.pad([0])) == {"input_ids", "attention_mask"}


def test_a_tokenizer_that_cannot_pad_is_refused(tiny_encoder):
    other = AutoTokenizer.from_pretrained(tiny_encoder)
    other.pad_token = None
    with pytest.raises(ConfigError, match="no padding token"):
        encode_pairs(other, [SHORT], [LONG], max_length=64)


def test_nothing_encodes_to_nothing(tokenizer):
    encoded = encode_pairs(tokenizer, [], [], max_length=64)
    assert len(encoded) == len(encoded.lengths) == len(encoded.truncated) == 0


def test_more_pairs_than_a_chunk_keep_their_order(tokenizer):
    texts = [SHORT if index % 3 else LONG for index in range(2050)]
    encoded = encode_pairs(tokenizer, [SHORT] * 2050, texts, max_length=64)
    lengths = {text: len(tokenizer(SHORT, text).input_ids) for text in (SHORT, LONG)}
    assert encoded.lengths.tolist() == [lengths[text] for text in texts]


TEXT = st.text(
    st.sampled_from("ab sleepTn'.🐕\U0001f468\u200d\U0001f469é\u0301 \n\t[]\x00"), max_size=40
)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pairs=st.lists(st.tuples(TEXT, st.one_of(TEXT, st.just(LONG))), min_size=1, max_size=5))
def test_pairs_have_the_ids_that_the_tokenizer_gives_each_of_them_alone(tokenizer, pairs):
    first, second = zip(*pairs, strict=True)
    longest = max(len(tokenizer(text, add_special_tokens=False).input_ids) for text in first)
    max_length = longest + 6
    encoded = encode_pairs(tokenizer, first, second, max_length=max_length)
    for index, (one, other) in enumerate(pairs):
        # As a list of one: a lone empty text would count as no text at all.
        alone = tokenizer([one], [other], truncation="only_second", max_length=max_length)
        assert row(encoded, index) == (alone.input_ids[0], alone.token_type_ids[0])
        whole = tokenizer([one], [other]).input_ids[0]
        assert encoded.truncated[index] == (len(whole) > max_length)
    batch = encoded.pad(range(len(pairs)))
    kept = batch["input_ids"][batch["attention_mask"].bool()].numpy()
    rows = [encoded.row(index)[0] for index in range(len(pairs))]
    np.testing.assert_array_equal(kept, np.concatenate(rows))


def test_a_text_is_held_once_in_however_many_pairs_it_stands(tokenizer):
    encoded = encode_pairs(tokenizer, [SHORT, LONG], [LONG, LONG], max_length=64)
    assert np.shares_memory(encoded.parts[0][1], encoded.parts[1][1])
