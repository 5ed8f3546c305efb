import json
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


def test_no_posts_have_no_duplicates():
    assert find().by_kind() == {"exact": [], "near": [], "quoted": []}


def test_duplicates_within_a_split_are_no_leak():
    report = find(train=[FILLER, FILLER, f"{FILLER} today"], val=["a b c"], test=["d e f"])
    assert (report.exact, report.near) == ([], [])


def test_near_copies_come_with_their_exact_similarity():
    report = find(train=["a b c d e f g"], val=["z"], test=["a b c d e f h"], threshold=0.6)
    assert report.near == [("train0", "train", "test0", "test", 4 / 6)]
    assert report.to_json() == {
        "exact": [],
        "near": [("train0", "train", "test0", "test", 4 / 6)],
        "quoted": [],
        "n_posts_exact": {"train": 0, "val": 0, "test": 0},
        "n_posts_near": {"train": 1, "val": 0, "test": 1},
        "n_posts_quoted": {"train": 0, "val": 0, "test": 0},
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
    drawn = (" ".join(draw.choices("abcd", k=draw.randint(1, 9))) for _ in range(300))
    texts = list(dict.fromkeys(drawn))[:90]
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


def test_no_copy_of_a_text_is_missed_that_brute_force_finds():
    draw = random.Random(8)
    texts = [" ".join(draw.choices("abcd", k=draw.randint(3, 6))) for _ in range(40)]
    parts = {name: draw.choices(texts, k=25) for name in ("train", "val", "test")}
    named = [(f"{name}{i}", name, t) for name, ts in parts.items() for i, t in enumerate(ts)]
    expected: dict[str, set[str]] = {"exact": set(), "near": set()}
    for post_id, split, text in named:
        for _, other_split, other in named:
            x, y = trigrams(text), trigrams(other)
            if split != other_split and len(x & y) / len(x | y) >= 0.5:
                expected["exact" if text == other else "near"].add(post_id)
    report = find(**parts, threshold=0.5)
    for kind, posts in expected.items():
        found = set().union(*(report.post_ids(name, kind) for name in parts))
        assert found == posts
        assert len(posts) > 10


def test_two_thousand_posts_take_no_time():
    draw = random.Random(1)
    words = [f"w{i}" for i in range(500)]
    texts = [" ".join(["i feel like", *draw.choices(words, k=120)]) for _ in range(2000)]
    started = time.perf_counter()
    report = find(train=texts[:1600], val=texts[1600:1800], test=[*texts[1800:], f"{texts[0]} x"])
    assert time.perf_counter() - started < 40  # quadratic: minutes
    assert [(a, b) for a, _, b, _, _ in report.near] == [("train0", "test200")]


def test_a_post_that_most_of_is_in_a_longer_one_is_quoted():
    draw = random.Random(3)
    words = [f"w{i}" for i in range(2000)]
    quoted, around = draw.sample(words, 30), draw.sample(words, 200)
    report = find(
        train=[" ".join(quoted)],
        val=[" ".join(quoted[:20])],  # too short to be told from a set phrase
        test=[" ".join([*around[:100], *quoted[:-1], *around[100:]])],
    )
    assert report.near == []
    assert report.quoted == [("train0", "train", "test0", "test", 27 / 28)]


def test_words_of_scripts_without_spaces_are_their_characters():
    report = find(
        train=["我昨天晚上一直睡不着觉"],
        val=["今天天气很好我们去公园"],
        test=["我昨天晚上一直睡不着觉了"],
    )
    assert [(a, b) for a, _, b, _, _ in report.near] == [("train0", "test0")]


@pytest.mark.slow
@pytest.mark.parametrize("n_changed", [0, 1, 4])
def test_thousands_of_posts_from_one_template_take_no_time_and_few_lines(n_changed):
    draw = random.Random(1)
    words = [f"w{i}" for i in range(20_000)]
    template = draw.choices(words, k=60)
    texts = [" ".join(draw.choices(words, k=60)) for _ in range(16_000)]
    for number in range(4000):
        alike = list(template)
        for place in draw.sample(range(60), n_changed):
            alike[place] = f"name{number}"
        texts.append(" ".join(alike))
    draw.shuffle(texts)
    started = time.perf_counter()
    report = find(train=texts[:14_000], val=texts[14_000:17_000], test=texts[17_000:])
    assert time.perf_counter() - started < 40
    told = report.to_json()
    assert len(json.dumps(told)) < 30_000
    if n_changed == 0:
        assert sum(told["n_posts_exact"].values()) == 4000
        assert len(report.exact) < 8000
    if n_changed == 1:
        assert (
            len(set().union(*(report.post_ids(name) for name in ("train", "val", "test")))) == 4000
        )


def test_the_posts_of_a_split_with_duplicates_are_listed_by_kind():
    report = find(train=[FILLER, FILLER, "a b c"], val=[FILLER], test=[f"{FILLER} today"])
    assert report.post_ids("train") == ["train0", "train1"]
    assert report.post_ids("test", "exact") == []
    assert report.post_ids("test", "near") == ["test0"]


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1])
def test_an_impossible_threshold_is_refused(threshold):
    with pytest.raises(ConfigError, match="threshold"):
        find(train=["a"], val=["b"], test=["c"], threshold=threshold)
