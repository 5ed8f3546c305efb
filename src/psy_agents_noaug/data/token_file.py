"""The tokens of posts in a file that is mapped into memory, cut into blocks that an encoder can read.

A post is one block, or several where it is longer than the encoder reads. A block takes 20 bytes of
memory; the tokens, 4 bytes each, are on disk.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


@dataclass(frozen=True)
class TokenBlocks:
    """Blocks of tokens of posts, without special tokens.

    Attributes:
        path: the file; a token is its id times two, plus one if it begins a word, int32.
        starts: where each block begins in the file, in tokens; int64 `[blocks]`.
        lengths: tokens of each block; int32 `[blocks]`.
        posts: the post of each block, by its place in the table of posts, from 0; int64 `[blocks]`.
    """

    path: Path
    starts: np.ndarray
    lengths: np.ndarray
    posts: np.ndarray
    _mapped: list[np.ndarray] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of a block, int32 `[tokens]`, and which of them begin words, bool."""
        if not self._mapped:
            self._mapped.append(np.memmap(self.path, dtype=np.int32, mode="r"))
        begin = int(self.starts[index])
        codes = np.asarray(self._mapped[0][begin : begin + int(self.lengths[index])])
        return codes >> 1, (codes & 1).astype(bool)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the mapped tokens, which a worker process maps for itself."""
        return {**self.__dict__, "_mapped": []}

    def of(self, chosen: np.ndarray) -> "TokenBlocks":
        """Return the blocks of a mask, bool `[blocks]`, in their order."""
        return replace(
            self,
            starts=self.starts[chosen],
            lengths=self.lengths[chosen],
            posts=self.posts[chosen],
        )


class TokenFileWriter:
    """Writes the tokens of posts into a file, part by part.

    Args:
        path: of the file, which is there.
        file: opened for writing.
        tokenizer: a fast Hugging Face tokenizer.
        room: most tokens of a block.
    """

    def __init__(self, path: Path, file: BinaryIO, tokenizer: Any, *, room: int) -> None:
        self._path = path
        self._file = file
        self._tokenizer = tokenizer
        self._room = room
        self._end = 0
        self._digest = hashlib.sha256()
        self._cuts: list[np.ndarray] = [np.zeros((0, 3), dtype=np.int64)]

    def add(self, texts: Sequence[str], places: Sequence[int]) -> int:
        """Write texts, the posts at these places of the table. Return how many have no token."""
        if not texts:
            return 0
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about long texts: they are cut
        )
        cuts, n_empty = [], 0
        for row, place in enumerate(places):
            ids = np.asarray(encoded["input_ids"][row], dtype=np.int32)
            if not len(ids):
                n_empty += 1
                continue
            words = np.asarray(
                [-1 if word is None else word for word in encoded.word_ids(row)], dtype=np.int64
            )
            begins = np.diff(words, prepend=-2) != 0
            codes = (ids * 2 + begins).astype("<i4").tobytes()
            self._file.write(codes)
            self._digest.update(len(ids).to_bytes(8, "little") + codes)
            cuts += [
                (self._end + begin, end - begin, place)
                for begin, end in cut_at_words(begins, room=self._room)
            ]
            self._end += len(ids)
        self._cuts.append(np.asarray(cuts, dtype=np.int64).reshape(-1, 3))
        return n_empty

    def finish(self) -> tuple[TokenBlocks, str]:
        """Return all blocks, in the order of the posts, and a hash of all tokens."""
        self._file.flush()
        starts, lengths, posts = np.concatenate(self._cuts).T
        blocks = TokenBlocks(self._path, starts.copy(), lengths.astype(np.int32), posts.copy())
        return blocks, self._digest.hexdigest()


def cut_at_words(begins: np.ndarray, *, room: int) -> list[tuple[int, int]]:
    """Cut a text into runs of at most `room` tokens, between words unless a word is longer.

    Args:
        begins: whether each token begins a word; bool `[tokens]`.
        room: most tokens of a run.
    """
    words = np.flatnonzero(begins)
    runs, begin = [], 0
    while len(begins) - begin > room:
        end = int(words[np.searchsorted(words, begin + room, side="right") - 1])
        end = end if end > begin else begin + room
        runs.append((begin, end))
        begin = end
    return [*runs, (begin, len(begins))]
