import random
import time

import pytest

from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.duplicates import find_duplicates_across_splits
from psy_agents_noaug.data.splits import Splits
from psy_agents_noaug.errors import ConfigError

FILLER = "the quick brown fox jumps over the lazy dog near the old river bank"


def find(train=(), val=(), test=(), **options):
    texts = {"train": train, "val": val, "test": test}
    posts = [Post(f"{n}{i}", t, f"{n}{i}") for n, ts in texts.items() for i, t in enumerate(ts)]
    ids = {n: tuple(f"{n}{i}" for i in range(len(ts))) for n, ts in texts.items()}
    splits = Splits(**ids, fingerprint="", origin="")
    return find_duplicates_across_splits(posts, splits, **options)


def trigrams(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    size = 3 if len(words) >= 3 else 1
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def test_equal_texts_in_two_splits_are_exact_whatever_their_case_and_spaces():
    report = find(train=[FILLER, "x y z"], val=["a b c"], test=[f" {FILLER.upper()}\r\n"])
    assert report.exact == [("train0", "train", "test0", "test")]
    assert report.near == []


def test_every_pair_of_copies_across_splits_is_listed():
    report = find(train=[FILLER, FILLER], val=[FILLER], test=["x"])
    assert report.exact == [
        ("train0", "train", "val0", "val"),
        ("train1", "train", "val0", "val"),
    ]


def test_duplicates_within_a_split_are_no_leak():
    report = find(train=[FILLER, FILLER, f"{FILLER} today"], val=["a b c"], test=["d e f"])
    assert (report.exact, report.near) == ([], [])


def test_near_copies_come_with_their_exact_similarity():
    report = find(train=["a b c d e f g"], val=["z"], test=["a b c d e f h"], threshold=0.6)
    assert report.near == [("train0", "train", "test0", "test", 4 / 6)]
    assert report.to_json() == {
        "exact": [],
        "near": [("train0", "train", "test0", "test", 4 / 6)],
    }


def test_the_threshold_itself_is_near_enough():
    texts = {"train": ["a b c d e f g"], "val": ["z"], "test": ["a b c d e f"]}
    assert len(find(**texts, threshold=0.8).near) == 1
    assert find(**texts, threshold=0.81).near == []


def test_rounding_does_not_hide_a_pair_at_the_threshold():
    words = [f"w{i}" for i in range(102)]  # 100 shingles, of which the other text has 55
    texts = {"train": [" ".join(words)], "val": ["z"], "test": [" ".join(words[-57:])]}
    assert [pair[-1] for pair in find(**texts, threshold=0.55).near] == [0.55]


def test_near_copies_are_found_in_scripts_without_spaces():
    # 12 and 11 words without the punctuation; they share 9 of 10 trigrams.
    one, other = "我整夜都睡不着也不想吃", "我整夜都睡不着也不想吃饭"
    report = find(train=[one], test=[other], threshold=0.9)
    assert [pair[-1] for pair in report.near] == [9 / 10]


def test_texts_of_less_than_three_words_are_compared_by_words():
    report = find(train=["help me", "😔 😔"], val=["me... help"], test=["😔"], threshold=0.5)
    assert [(a, b, j) for a, _, b, _, j in report.near] == [
        ("train0", "val0", 1.0),
        ("train1", "test0", 1.0),
    ]


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7, 0.8, 1.0])
def test_no_pair_is_missed_that_brute_force_finds(threshold):
    draw = random.Random(7)
    texts = [" ".join(draw.choices("abcd", k=draw.randint(1, 9))) for _ in range(90)]
    parts = {"train": texts[:60], "val": texts[60:75], "test": texts[75:]}
    named = [(f"{n}{i}", n, t) for n, ts in parts.items() for i, t in enumerate(ts)]
    expected = set()
    for i, (a, split_a, text_a) in enumerate(named):
        for b, split_b, text_b in named[i + 1 :]:
            x, y = trigrams(text_a), trigrams(text_b)
            similarity = len(x & y) / len(x | y)
            if split_a != split_b and text_a != text_b and similarity >= threshold:
                expected.add((a, split_a, b, split_b, similarity))
    report = find(**parts, threshold=threshold)
    assert set(report.near) == expected
    assert len(report.near) == len(expected)


def test_two_thousand_posts_take_no_time():
    draw = random.Random(1)
    words = [f"w{i}" for i in range(500)]
    texts = [" ".join(["i feel like", *draw.choices(words, k=120)]) for _ in range(2000)]
    started = time.perf_counter()
    report = find(train=texts[:1600], val=texts[1600:1800], test=[*texts[1800:], f"{texts[0]} x"])
    assert time.perf_counter() - started < 10
    assert [(a, b) for a, _, b, _, _ in report.near] == [("train0", "test200")]


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1])
def test_an_impossible_threshold_is_refused(threshold):
    with pytest.raises(ConfigError, match="threshold"):
        find(train=["a"], val=["b"], test=["c"], threshold=threshold)
