"""Tokenisation of texts, cached on disk for later runs on the same texts and tokenizer."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from psy_agents_noaug.utils.files import write_bytes

_FORMAT = 1
_CHUNK = 1024

logger = logging.getLogger(__name__)


class Tokens(NamedTuple):
    """The tokens of a text, without special tokens.

    Attributes:
        ids: int32 `[tokens]`.
        offsets: int32 `[tokens, 2]`; half-open range of code points that each token covers.
    """

    ids: np.ndarray
    offsets: np.ndarray


def cache_folder(setting: str) -> Path | None:
    """Return the folder for `data.token_cache`: the user's cache for `auto`, None for `off`."""
    if setting == "off":
        return None
    if setting != "auto":
        return Path(setting).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "psy_agents_noaug" / "tokens"


def tokenise(
    tokenizer: Any, texts: Sequence[str], *, cache: Path | None = None
) -> dict[str, Tokens]:
    """Return the tokens of each distinct text.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        texts: may hold duplicates.
        cache: folder to read the tokens from, or to write them to; None for no cache. A file is named
            by a fingerprint of tokenizer and texts. Only the user may read the folder, because ids
            reveal the texts.
    """
    distinct = list(dict.fromkeys(texts))
    if cache is None:
        return _by_text(distinct, _tokenised(tokenizer, distinct))
    path = cache / f"{_fingerprint(tokenizer, distinct)}.safetensors"
    try:
        arrays = load_file(path)
    except FileNotFoundError:
        arrays = _tokenised(tokenizer, distinct)
        _write_cache(path, arrays)
    except (OSError, SafetensorError) as error:
        logger.warning(
            "The cached tokens in %s cannot be read (%s). Tokenising again.", path, error
        )
        arrays = _tokenised(tokenizer, distinct)
        _write_cache(path, arrays)
    return _by_text(distinct, arrays)


def _tokenised(tokenizer: Any, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the `ids` and `offsets` of all texts, concatenated, and their `starts` `[texts + 1]`."""
    ids: list[np.ndarray] = [np.zeros(0, dtype=np.int32)]
    offsets: list[np.ndarray] = [np.zeros((0, 2), dtype=np.int32)]
    lengths = [0]
    for begin in range(0, len(texts), _CHUNK):
        encoded = tokenizer(
            list(texts[begin : begin + _CHUNK]),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,  # no warning about long texts: they are cut later
        )
        ids += [np.asarray(one, dtype=np.int32) for one in encoded["input_ids"]]
        offsets += [
            np.asarray(one, dtype=np.int32).reshape(-1, 2) for one in encoded["offset_mapping"]
        ]
        lengths += map(len, encoded["input_ids"])
    return {
        "ids": np.concatenate(ids),
        "offsets": np.concatenate(offsets),
        "starts": np.cumsum(lengths, dtype=np.int64),
    }


def _by_text(texts: Sequence[str], arrays: dict[str, np.ndarray]) -> dict[str, Tokens]:
    starts = arrays["starts"].tolist()
    return {
        text: Tokens(arrays["ids"][begin:end], arrays["offsets"][begin:end])
        for text, begin, end in zip(texts, starts, starts[1:], strict=False)
    }


def _fingerprint(tokenizer: Any, texts: Sequence[str]) -> str:
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # These two are state of the tokenizer's last call and do not change tokens.
    rules.pop("truncation", None)
    rules.pop("padding", None)
    digest = hashlib.sha256(json.dumps([_FORMAT, tokenizers.__version__, rules]).encode())
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def _write_cache(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write atomically, so that processes that start together do not damage each other's file."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_bytes(path, save(arrays))
    except OSError as error:
        logger.warning("Tokens cannot be cached in %s: %s", path.parent, error)
