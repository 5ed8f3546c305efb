"""Tokenisation of texts, cached on disk for later runs on the same texts and tokenizer.

A cache file is an ordinary safetensors file whose metadata hold the SHA-256 of the whole file, with
zeros in place of the hash.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from safetensors.numpy import load, save

from psy_agents_noaug.errors import StorageError
from psy_agents_noaug.utils.files import make_folder, sweep, without_tilde, write_bytes

_FORMAT = 2
_CHUNK = 1024
_NO_DIGEST = b"0" * 64
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_HEADER_BYTES = 4096  # the metadata are within them

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
    """Return the folder for `data.token_cache`: the user's cache, if any, for `auto`, None for `off`."""
    if setting == "off":
        return None
    if setting != "auto":
        return without_tilde(setting)
    caches = without_tilde(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    # Without a home directory the tilde stays: no folder of that name is made where a run was started.
    return caches / "psy_agents_noaug" / "tokens" if caches.is_absolute() else None


def tokenise(
    tokenizer: Any, texts: Sequence[str], *, cache: Path | None = None
) -> dict[str, Tokens]:
    """Return the tokens of each distinct text.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        texts: may hold duplicates.
        cache: folder to read the tokens from, or to write them to; None for no cache. A file is named
            by a fingerprint of tokenizer and texts. Only the user may read it, because ids reveal the
            texts. A damaged file is made anew.
    """
    distinct = list(dict.fromkeys(texts))
    if cache is None:
        return _by_text(distinct, _tokenised(tokenizer, distinct))
    path = cache / f"{_fingerprint(tokenizer, distinct)}.safetensors"
    arrays = _read_cache(path, n_texts=len(distinct))
    if arrays is None:
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


def _read_cache(path: Path, *, n_texts: int) -> dict[str, np.ndarray] | None:
    """Return the arrays of a cache file, or None if it is not there or damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning(
            "The cached tokens in %s cannot be read (%s). Tokenising again.", path, error.strerror
        )
        return None
    found = _DIGEST.search(content, 0, _HEADER_BYTES)
    if found is not None and _digest(content, *found.span(1)) == found[1]:
        arrays = load(content)
        if _are_consistent(arrays, n_texts=n_texts):
            return arrays
    logger.warning("The cached tokens in %s are damaged. Tokenising again.", path)
    return None


def _are_consistent(arrays: dict[str, np.ndarray], *, n_texts: int) -> bool:
    """Whether arrays have the types and shapes of `_tokenised`, and cut all tokens into the texts."""
    if arrays.keys() != {"ids", "offsets", "starts"}:
        return False
    ids, offsets, starts = arrays["ids"], arrays["offsets"], arrays["starts"]
    found = [(array.dtype.name, array.shape) for array in (ids, offsets, starts)]
    return (
        found == [("int32", (ids.size,)), ("int32", (ids.size, 2)), ("int64", (n_texts + 1,))]
        and starts[0] == 0
        and starts[-1] == ids.size
        and bool((np.diff(starts) >= 0).all())
    )


def _write_cache(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write atomically, so that processes that start together do not damage each other's file."""
    content = save(arrays, metadata={"sha256": _NO_DIGEST.decode()})
    begin = content.index(_NO_DIGEST)
    digest = _digest(content, begin, begin + len(_NO_DIGEST))
    try:
        for folder in make_folder(path.parent):
            folder.chmod(0o700)
        sweep(path.parent)
        write_bytes(path, content.replace(_NO_DIGEST, digest, 1), mode=0o600)
    except (StorageError, OSError) as error:
        logger.warning("Tokens cannot be cached: %s", error)


def _digest(content: bytes, begin: int, end: int) -> bytes:
    """Return the SHA-256 of `content` with zeros from `begin` to `end`, in hexadecimal digits."""
    digest = hashlib.sha256(content[:begin])
    digest.update(_NO_DIGEST)
    digest.update(memoryview(content)[end:])
    return digest.hexdigest().encode()
