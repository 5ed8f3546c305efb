"""What a checkpoint remembers of posts: what it finds again, and what it does not give away."""

import io
import random

import numpy as np
import pytest
import torch

from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.seen import SeenPosts

WORDS = [f"w{i}" for i in range(5000)]
DRAW = random.Random(5)
# Words are as unequal as in a language: the first of them is every ninth word.
WEIGHTS = [1 / rank for rank in range(1, len(WORDS) + 1)]


def texts(n, length):
    return [DRAW.choices(WORDS, WEIGHTS, k=length) for _ in range(n)]


def posts(rows, group="{}"):
    return [Post(f"{i}", " ".join(row), group.format(i)) for i, row in enumerate(rows)]


SEEN = texts(400, 60)
REMEMBERED = SeenPosts.of(posts(SEEN), key="k")


def n_found(rows):
    return len(REMEMBERED.near_duplicates(posts(rows)))


@pytest.mark.parametrize("n_changed", [1, 2, 3])
def test_a_post_with_words_changed_is_found(n_changed):
    edited = [list(row[:50]) for row in SEEN]
    for row in edited:
        for place in DRAW.sample(range(50), n_changed):
            row[place] = "changed"
    assert n_found(edited) == len(SEEN)


def test_a_post_with_words_added_is_found_whatever_its_case_and_punctuation():
    edited = [["Update:", *(w.upper() + "," for w in row), "thanks", "all"] for row in SEEN]
    assert n_found(edited) == len(SEEN)


def test_a_seen_post_inside_a_longer_one_is_found():
    longer = [[*a[:100], *row[:26], *a[100:]] for a, row in zip(texts(400, 200), SEEN, strict=True)]
    assert n_found(longer) == len(SEEN)


def test_a_part_of_a_seen_post_is_found():
    assert n_found([row[10:35] for row in SEEN]) == len(SEEN)


@pytest.mark.parametrize("length", [3, 12, 50, 300])
def test_unrelated_posts_are_not_found(length):
    assert n_found(texts(1000, length)) == 0


def test_posts_without_words_are_neither_found_nor_in_the_way():
    remembered = SeenPosts.of(posts([["😔"], ["..."]]), key="k")
    assert remembered.near_duplicates(posts([["😔"], ["..."], []])) == []
    assert SeenPosts.of([], key="k").near_duplicates(posts(SEEN[:3])) == []


def test_it_outlives_a_checkpoint_and_stays_small():
    file = io.BytesIO()
    torch.save(REMEMBERED.to_metadata(), file)
    assert file.tell() < 60 * len(SEEN) + 4000  # a byte per word
    file.seek(0)
    read = SeenPosts.from_metadata(torch.load(file, weights_only=True))
    assert read.near_duplicates(posts(SEEN)) == [post.post_id for post in posts(SEEN)]


def test_so_many_words_seem_to_be_there_that_a_text_cannot_be_guessed_word_by_word():
    filled = np.unpackbits(REMEMBERED.bits.numpy()).mean()
    assert filled * len(WORDS) > 400  # next words that seem to go on, one of them rightly


def test_authors_are_known_by_hashes_of_this_key_alone():
    remembered = SeenPosts.of(posts(SEEN[:3], group="author {}"), key="k")
    others = posts(texts(5, 9), group="author {}")
    assert remembered.by_seen_authors(others) == ["0", "1", "2"]
    assert "author 0" not in str(remembered.to_metadata())
    assert (
        not remembered.authors & SeenPosts.of(posts(SEEN[:3], group="author {}"), key="l").authors
    )
    assert REMEMBERED.authors == frozenset()  # a post of an unknown author is its own group
