"""A damaged token cache is noticed and made anew, and nobody else can read it."""

import random
import re
import shutil
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save
from transformers import AutoTokenizer

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.data import tokens as tokens_module
from psy_agents_noaug.data.tokens import tokenise
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.run.train import train

CANARY = "xylozephyrquill"
TEXTS = ["The bus was late.", "", "lamp", "We cooked soup and watched a film."]


@pytest.fixture
def tokenizer(tiny_encoder):
    return AutoTokenizer.from_pretrained(tiny_encoder)


@pytest.fixture
def cached(tokenizer, tmp_path) -> Path:
    """The file of the cached tokens of TEXTS."""
    tokenise(tokenizer, TEXTS, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    return path


def assert_made_anew(tokenizer, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    good = tokenise(tokenizer, TEXTS)
    found = tokenise(tokenizer, TEXTS, cache=path.parent)
    assert found.keys() == good.keys()
    assert all(
        np.array_equal(a, b) for text in good for a, b in zip(found[text], good[text], strict=True)
    )
    assert f"{path} are damaged. Tokenising again." in caplog.text
    assert not any(text in caplog.text for text in TEXTS if text)
    caplog.clear()
    tokenise(tokenizer, TEXTS, cache=path.parent)
    assert not caplog.records


@pytest.mark.faults(
    "a bit of the token cache is flipped", "a warning; the texts are tokenised again"
)
def test_every_flipped_bit_is_noticed(tokenizer, cached, caplog):
    content = cached.read_bytes()
    source = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[source.randrange(len(content))] ^= 1 << source.randrange(8)
        cached.write_bytes(damaged)
        assert_made_anew(tokenizer, cached, caplog)
        assert cached.read_bytes() == content


@pytest.mark.faults("the token cache is cut short", "a warning; the texts are tokenised again")
@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, -64, -1])
def test_a_cache_that_was_cut_is_noticed(tokenizer, cached, caplog, kept):
    cached.write_bytes(cached.read_bytes()[:kept])
    assert_made_anew(tokenizer, cached, caplog)


def _of_fewer_texts(arrays):
    return arrays | {"starts": arrays["starts"][:-1]}


def _with_falling_starts(arrays):
    return arrays | {"starts": arrays["starts"][::-1].copy()}


def _with_starts_beyond_the_tokens(arrays):
    return arrays | {"starts": arrays["starts"] + (arrays["starts"] > 0)}


def _of_another_type(arrays):
    return arrays | {"ids": arrays["ids"].astype(np.int64)}


def _with_offsets_of_half_the_tokens(arrays):
    return arrays | {"offsets": arrays["offsets"][::2].copy()}


def _without_offsets(arrays):
    return {name: arrays[name] for name in ("ids", "starts")}


@pytest.mark.faults(
    "the token cache holds other arrays than it should", "a warning; the texts are tokenised again"
)
@pytest.mark.parametrize(
    "change",
    [
        _of_fewer_texts,
        _with_falling_starts,
        _with_starts_beyond_the_tokens,
        _of_another_type,
        _with_offsets_of_half_the_tokens,
        _without_offsets,
    ],
)
def test_arrays_that_do_not_fit_are_not_used_though_their_checksum_is_right(
    tokenizer, cached, caplog, change: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
):
    tokens_module._write_cache(cached, change(load(cached.read_bytes())))
    assert_made_anew(tokenizer, cached, caplog)


def test_a_file_of_safetensors_without_a_checksum_is_not_used(tokenizer, cached, caplog):
    cached.write_bytes(save(load(cached.read_bytes())))
    assert_made_anew(tokenizer, cached, caplog)


@pytest.mark.faults("the folder of the token cache is open to others", "its files are not (0600)")
def test_nobody_else_may_read_the_files_of_any_folder(tokenizer, tmp_path):
    (tmp_path / "open").mkdir(mode=0o777)
    for folder in (tmp_path / "open", tmp_path / "new" / "tokens"):
        tokenise(tokenizer, TEXTS, cache=folder)
        (path,) = folder.iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


@pytest.mark.faults(
    "a process is killed while it writes the token cache", "the next one removes the part"
)
def test_what_a_killed_process_left_is_swept(tokenizer, tmp_path):
    leftover = tmp_path / f".{'a' * 64}.safetensors.{2**22 + 1}.tmp"
    leftover.write_bytes(b"half")
    tokenise(tokenizer, TEXTS, cache=tmp_path)
    assert not leftover.exists()


@pytest.mark.slow
@pytest.mark.faults("a training meets a damaged token cache", "the same figures as without a cache")
def test_a_training_with_a_damaged_cache_has_the_figures_of_one_without(
    overrides: list[str], tmp_path: Path, own_logging: None, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "tokens"
    arguments = ["train", "task=criteria", *overrides]
    assert main([*arguments, "run_name=without", "data.token_cache=off"]) == 0
    assert main([*arguments, "run_name=first", f"data.token_cache={cache}"]) == 0
    for path in cache.iterdir():
        content = bytearray(path.read_bytes())
        content[-len(content) // 3] ^= 1
        path.write_bytes(content)
    capfd.readouterr()
    assert main([*arguments, "run_name=again", f"data.token_cache={cache}"]) == 0
    assert len(re.findall("are damaged", capfd.readouterr().err)) == 2
    runs = tmp_path / "outputs" / "criteria"
    figures = {run: (runs / run / "metrics.json").read_bytes() for run in ("without", "again")}
    assert figures["without"] == figures["again"]


def test_no_error_holds_the_text_of_a_post(
    make_config: Callable[..., TrainConfig], tiny_corpus: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))
    annotations = folder / "redsm5_annotations.csv"
    annotations.write_text(annotations.read_text().replace("p00_0", "").replace(",1,", ",2,"))
    with pytest.raises(DataError, match="breaks the data contract") as caught:
        train(make_config(f"data.dir={folder}"))
    seen: list[object] = [str(caught.value)]
    error: BaseException | None = caught.value
    while error is not None:
        seen += [vars(error), getattr(error, "doc", None), error.args]
        frames = traceback.walk_tb(error.__traceback__)
        seen += [frame.f_locals for frame, _ in frames if frame.f_code.co_filename != __file__]
        error = error.__cause__ or error.__context__
    assert len(seen) > 8
    assert CANARY not in repr(seen)
