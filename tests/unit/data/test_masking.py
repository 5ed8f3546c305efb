"""Whole-word masking, and posts as blocks of tokens in a file."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from psy_agents_noaug.data.masking import mask_words
from psy_agents_noaug.data.token_file import TokenFileWriter, cut_at_words

ORDINARY = np.arange(5, 300)
MASK = 4


def masked(ids: np.ndarray, begins: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return mask_words(
        ids,
        begins,
        probability=0.15,
        mask_id=MASK,
        ordinary_ids=ORDINARY,
        generator=np.random.default_rng(seed),
    )


def test_a_word_is_masked_with_all_of_its_tokens_or_not_at_all() -> None:
    begins = np.random.default_rng(1).random(4000) < 0.6
    _, chosen = masked(np.full(4000, 9, dtype=np.int32), begins)
    begins[0] = True
    words = np.split(chosen, np.flatnonzero(begins)[1:])
    assert any(len(word) > 1 and word.all() for word in words)
    assert all(word.all() or not word.any() for word in words)


def test_the_share_of_masked_tokens_and_what_replaces_them_are_those_asked_for() -> None:
    ids = np.full(200_000, 299, dtype=np.int32)
    begins = np.random.default_rng(2).random(len(ids)) < 0.7
    shown, chosen = masked(ids, begins)
    assert chosen.mean() == pytest.approx(0.15, abs=0.004)
    assert (shown[chosen] == MASK).mean() == pytest.approx(0.8, abs=0.01)
    assert (shown[chosen] == 299).mean() == pytest.approx(0.1, abs=0.01)
    assert np.isin(shown[chosen & (shown != MASK)], ORDINARY).all()
    assert (shown[~chosen] == 299).all()


def test_a_text_of_one_word_is_masked() -> None:
    for seed in range(20):
        _, chosen = masked(np.array([7, 8], dtype=np.int32), np.array([True, False]), seed=seed)
        assert chosen.all()


def test_long_texts_are_cut_between_words() -> None:
    begins = np.array([1, 0, 1, 0, 0, 1, 1, 0], dtype=bool)
    assert cut_at_words(begins, room=4) == [(0, 2), (2, 6), (6, 8)]
    assert cut_at_words(begins, room=8) == [(0, 8)]


def test_a_word_that_fills_more_than_a_block_is_cut() -> None:
    begins = np.array([1, 0, 0, 0, 0, 1], dtype=bool)
    assert cut_at_words(begins, room=2) == [(0, 2), (2, 4), (4, 6)]


def test_blocks_hold_the_tokens_of_the_texts_also_in_another_process(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    path = tmp_path / "tokens"
    texts = ["The bus was late again this morning.", "", "We cooked soup."]
    with path.open("wb") as file:
        writer = TokenFileWriter(path, file, tokenizer, room=5)
        assert writer.add(texts[:2], [0, 1]) == 1
        assert writer.add(texts[2:], [2]) == 0
        blocks, digest = writer.finish()
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    for own in (blocks, pickle.loads(pickle.dumps(blocks))):
        for place, ids in enumerate(expected):
            found = [own[i][0].tolist() for i in np.flatnonzero(own.posts == place).tolist()]
            assert [token for block in found for token in block] == ids
            assert all(len(block) <= 5 for block in found)
    with path.open("wb") as file:
        other = TokenFileWriter(path, file, tokenizer, room=5)
        other.add(texts[::-1], [0, 1, 2])
        assert other.finish()[1] != digest
