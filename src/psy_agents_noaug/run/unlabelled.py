"""Unlabelled posts for an adaptation: read part by part, tokenised into a file, divided."""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psy_agents_noaug.config.adaptation import AdaptConfig
from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.encoding import frames_of
from psy_agents_noaug.data.folding import fold
from psy_agents_noaug.data.posts_stream import PostsStream
from psy_agents_noaug.data.seen import KeyedHashes, SeenPosts
from psy_agents_noaug.data.token_file import TokenBlocks, TokenFileWriter
from psy_agents_noaug.errors import MAX_NAMES_LISTED, DataError, first_of
from psy_agents_noaug.run.data import load_divided
from psy_agents_noaug.utils.files import (
    sha256_of_json,
    storing,
    temporary_beside,
    without_tilde,
)

logger = logging.getLogger(__name__)

_POSTS_AT_ONCE = 1000


@dataclass(frozen=True)
class UnlabelledPosts:
    """The posts of an adaptation as blocks of tokens, and how many there were.

    Args:
        blocks: of train and val.
        fingerprint: of all tokens and of the division.
        left_out: fingerprints of the corpus and the division whose val and test were left out.
        counts: of posts: read, the same as a post of val or test, nearly the same, without a token,
            trained on, held out.
    """

    blocks: dict[str, TokenBlocks]
    fingerprint: str
    left_out: dict[str, str]
    counts: dict[str, int]

    def fingerprints(self) -> dict[str, str]:
        """Return hashes of the posts, and of what was left out of them."""
        return {"posts": self.fingerprint, **self.left_out}


@contextmanager
def unlabelled_posts(
    config: AdaptConfig, tokenizer: Any, folder: Path
) -> Iterator[UnlabelledPosts]:
    """Read the posts and tokenise them into a temporary file in `folder`, which only the user may read.

    The file is gone afterwards; what a killed process leaves is swept up when its folder is next opened.

    Raises:
        DataError: with the faults of a part of the file, or too few posts are left.
        StorageError: the file cannot be written.
    """
    path = temporary_beside(folder / "tokens")
    try:
        yield _read(config, tokenizer, path)
    finally:
        path.unlink(missing_ok=True)


def _read(config: AdaptConfig, tokenizer: Any, path: Path) -> UnlabelledPosts:
    unseen, left_out = _posts_to_leave_out(config)
    counts = dict.fromkeys(("read", "same", "near", "empty"), 0)
    held_out: list[np.ndarray] = [np.zeros(0, dtype=bool)]
    ids: dict[str, list[str]] = {"same": [], "near": []}
    frame = frames_of(tokenizer, [None], max_length=config.model.max_length)[None]
    source = without_tilde(config.posts)
    stream = PostsStream(source, config.columns, rows=_POSTS_AT_ONCE)
    try:
        with storing(path), os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
            writer = TokenFileWriter(
                path, file, tokenizer, room=config.model.max_length - len(frame)
            )
            for table in stream:
                names, texts = (table[name].to_pylist() for name in ("post_id", "text"))
                posts = [Post(*post, post[0]) for post in zip(names, texts, strict=True)]
                left = {"same": set(unseen.same_texts(posts))}
                left["near"] = set(unseen.near_duplicates(posts)) - left["same"]
                kept = [
                    (place, post.text)
                    for place, post in enumerate(posts, start=counts["read"])
                    if not any(post.post_id in own for own in left.values())
                ]
                counts["empty"] += writer.add([t for _, t in kept], [place for place, _ in kept])
                is_held = np.zeros(len(posts), dtype=bool)
                is_held[[place - counts["read"] for place, _ in kept]] = _are_held_out(
                    [text for _, text in kept], config
                )
                held_out.append(is_held)
                counts["read"] += len(posts)
                for kind, own in left.items():
                    counts[kind] += len(own)
                    ids[kind] = sorted([*ids[kind], *own])[:MAX_NAMES_LISTED]
            blocks, fingerprint = writer.finish()
    finally:
        stream.close()
    is_held = np.concatenate(held_out)
    divided = {
        "train": blocks.of(~is_held[blocks.posts]),
        "val": blocks.of(is_held[blocks.posts]),
    }
    counts |= {name: len(np.unique(own.posts)) for name, own in divided.items()}
    _log(counts, ids, divided, source.name)
    if faults := [name for name, own in divided.items() if not len(own)]:
        raise DataError(
            f"{source.name} leaves no post for {' and '.join(faults)}: {counts['read']} were read, "
            f"{counts['same'] + counts['near']} left out as posts of val or test. Give more posts, or "
            "set `task.held_out`."
        )
    division = hashlib.sha256(fingerprint.encode() + np.packbits(is_held).tobytes()).hexdigest()
    return UnlabelledPosts(divided, division, left_out, counts)


def _posts_to_leave_out(config: AdaptConfig) -> tuple[SeenPosts, dict[str, str]]:
    """Return the posts of val and test, and fingerprints of their corpus and its division.

    The search finds a few posts by chance, by its key. The key is no secret, as no hash is written: it
    follows from the fingerprints, so that all runs and processes leave out the same posts.
    """
    corpus, splits = load_divided(config.data)
    left_out = {"corpus": corpus.fingerprint, "splits": splits.fingerprint}
    key = bytes.fromhex(sha256_of_json(left_out))
    judged = {*splits.val, *splits.test}
    posts = [post for post in corpus.posts if post.post_id in judged]
    unseen = SeenPosts.of(posts, hashes=KeyedHashes(key))
    logger.info(
        "Left out are the %d posts of val and test of data=%s%s, and near duplicates of them.",
        len(posts),
        config.data.name,
        " (the bundled corpus; give `data` and `data.dir` for your own)"
        if config.data.source == "bundled"
        else "",
    )
    return unseen, left_out


def _are_held_out(texts: Sequence[str], config: AdaptConfig) -> np.ndarray:
    """Choose posts by a hash of their folded text, so that copies are on one side."""
    seed = config.data.split_seed.to_bytes(8, "little")
    digests = b"".join(
        hashlib.blake2b(
            fold(text).encode("utf-8", "surrogatepass"), digest_size=8, key=seed
        ).digest()
        for text in texts
    )
    return np.frombuffer(digests, dtype="<u8") < config.task.held_out * 2.0**64


def _log(
    counts: dict[str, int],
    ids: dict[str, list[str]],
    divided: dict[str, TokenBlocks],
    name: str,
) -> None:
    tokens = sum(int(own.lengths.sum(dtype=np.int64)) for own in divided.values())
    logger.info(
        "Read %d posts of %s: %d are trained on, %d held out for the perplexity, %d without a token; "
        "%d tokens.",
        counts["read"],
        name,
        counts["train"],
        counts["val"],
        counts["empty"],
        tokens,
    )
    kinds = {"same": "have the text of a post of val or test", "near": "are near duplicates of one"}
    for kind, what in kinds.items():
        if counts[kind]:
            names = first_of(ids[kind], n=counts[kind])
            logger.info("Left out: %d posts that %s: %s", counts[kind], what, names)
