"""What a checkpoint remembers of posts: what it finds again, and what it does not give away."""

import io
import random

import pytest
import torch

from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.seen import KeyedHashes, SeenPosts

WORDS = [f"w{i}" for i in range(5000)]
DRAW = random.Random(5)
# Words are as unequal as in a language: the first of them is every ninth word.
WEIGHTS = [1 / rank for rank in range(1, len(WORDS) + 1)]


def texts(n, length):
    return [DRAW.choices(WORDS, WEIGHTS, k=length) for _ in range(n)]


def posts(rows, group="{}"):
    return [Post(f"{i}", " ".join(row), group.format(i)) for i, row in enumerate(rows)]


SEEN = texts(400, 60)
HASHES = KeyedHashes(b"k" * 32)
REMEMBERED = SeenPosts.of(posts(SEEN), hashes=HASHES)


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
    remembered = SeenPosts.of(posts([["😔"], ["..."]]), hashes=HASHES)
    assert remembered.near_duplicates(posts([["😔"], ["..."], []])) == []
    assert SeenPosts.of([], hashes=HASHES).near_duplicates(posts(SEEN[:3])) == []


def test_it_outlives_a_checkpoint_and_stays_small():
    file = io.BytesIO()
    torch.save(REMEMBERED.to_metadata(), file)
    assert file.tell() < 105 * len(SEEN) + 4000  # a byte per word, and the hash of each text
    file.seek(0)
    read = SeenPosts.from_metadata(torch.load(file, weights_only=True), hashes=HASHES)
    assert read.near_duplicates(posts(SEEN)) == [post.post_id for post in posts(SEEN)]
    assert read.same_texts(posts(SEEN)) == [post.post_id for post in posts(SEEN)]


def test_the_same_text_is_known_whatever_its_case_and_spacing():
    again = [[word.upper() + " " for word in row] for row in SEEN[:3]]
    assert REMEMBERED.same_texts(posts(again)) == ["0", "1", "2"]
    assert REMEMBERED.same_texts(posts([[*SEEN[0], "more"]])) == []


def test_without_the_key_nothing_is_found():
    values = SeenPosts.of(posts(SEEN, group="author {}"), hashes=HASHES).to_metadata()
    other = SeenPosts.from_metadata(values, hashes=KeyedHashes(b"l" * 32))
    again = posts(SEEN, group="author {}")
    assert other.same_texts(again) == other.near_duplicates(again) == []
    assert other.by_seen_authors(again) == []


def test_authors_are_known_where_they_are_given():
    remembered = SeenPosts.of(posts(SEEN[:3], group="author {}"), hashes=HASHES)
    others = posts(texts(5, 9), group="author {}")
    assert remembered.by_seen_authors(others) == ["0", "1", "2"]
    assert REMEMBERED.authors == frozenset()  # a post of an unknown author is its own group


def test_words_texts_and_authors_of_the_same_spelling_have_unlike_hashes():
    hashes = [HASHES.word("alice").hex(), HASHES.text("alice"), HASHES.author("alice")]
    assert len({value[:16] for value in hashes}) == 3
