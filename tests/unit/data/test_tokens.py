import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from psy_agents_noaug.data.tokens import cache_folder, tokenise

TEXTS = ["The bus was late.", "", "lamp", "The bus was late."]


@pytest.fixture
def tokenizer(tiny_encoder):
    return AutoTokenizer.from_pretrained(tiny_encoder)


class Forgetful:
    """A tokenizer that can be asked for its rules, and no longer for tokens."""

    def __init__(self, tokenizer) -> None:
        self.backend_tokenizer = tokenizer.backend_tokenizer

    def __call__(self, *_: object, **__: object) -> None:
        raise AssertionError("tokenised anew")


def equal(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(
        np.array_equal(a, b) for text in ours for a, b in zip(ours[text], theirs[text], strict=True)
    )


def test_what_was_tokenised_once_is_read_back(tokenizer, tmp_path):
    first = tokenise(tokenizer, TEXTS, cache=tmp_path)
    assert equal(first, tokenise(tokenizer, TEXTS))
    assert equal(first, tokenise(Forgetful(tokenizer), TEXTS, cache=tmp_path))


def test_other_texts_and_other_rules_are_other_files(tokenizer, tiny_encoder, tmp_path):
    tokenise(tokenizer, TEXTS, cache=tmp_path)
    for other in (["The bus was", " late."], ["The bus was late.", "lamp"]):
        with pytest.raises(AssertionError, match="anew"):
            tokenise(Forgetful(tokenizer), other, cache=tmp_path)
    more = AutoTokenizer.from_pretrained(tiny_encoder)
    more.add_tokens(["late."])
    assert not equal(tokenise(more, TEXTS, cache=tmp_path), tokenise(tokenizer, TEXTS))


def test_how_the_tokenizer_was_last_called_changes_nothing(tokenizer, tmp_path):
    tokenise(tokenizer, TEXTS, cache=tmp_path)
    tokenizer(["lamp", "bus was"], truncation=True, max_length=4, padding=True)
    assert tokenise(Forgetful(tokenizer), TEXTS, cache=tmp_path)


def test_a_damaged_file_is_told_of_and_made_anew(tokenizer, tmp_path, caplog):
    tokenise(tokenizer, TEXTS, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    assert equal(tokenise(tokenizer, TEXTS, cache=tmp_path), tokenise(tokenizer, TEXTS))
    assert "are damaged" in caplog.text
    assert tokenise(Forgetful(tokenizer), TEXTS, cache=tmp_path)


def test_nobody_else_may_read_the_folder_and_one_that_was_there_stays_as_it_is(tokenizer, tmp_path):
    tokenise(tokenizer, TEXTS, cache=tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "old").mkdir(mode=0o755)
    tokenise(tokenizer, TEXTS, cache=tmp_path / "old")
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o755


def test_a_folder_that_cannot_be_written_is_told_of(tokenizer, tmp_path, caplog):
    (tmp_path / "file").touch()
    assert tokenise(tokenizer, TEXTS, cache=tmp_path / "file" / "tokens").keys() == set(TEXTS)
    assert "cannot be cached" in caplog.text


def _tokenise(encoder: Path, cache: Path) -> list[int]:
    found = tokenise(AutoTokenizer.from_pretrained(encoder), TEXTS, cache=cache)
    return found["The bus was late."].ids.tolist()


@pytest.mark.slow
def test_processes_that_start_together_get_the_same_tokens(tokenizer, tiny_encoder, tmp_path):
    with ProcessPoolExecutor(4) as pool:
        found = list(pool.map(_tokenise, [tiny_encoder] * 8, [tmp_path] * 8))
    assert found == [tokenise(tokenizer, TEXTS)["The bus was late."].ids.tolist()] * 8
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_the_folder_is_the_users_cache_another_or_none(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", os.sep + "caches")
    assert cache_folder("auto") == Path("/caches/psy_agents_noaug/tokens")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("auto") == Path.home() / ".cache/psy_agents_noaug/tokens"
    assert cache_folder("~/there") == Path.home() / "there"
    assert cache_folder("off") is None
