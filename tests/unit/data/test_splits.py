import json
import random
import time
from collections import Counter

import pytest
from sklearn.model_selection import train_test_split

from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.splits import (
    make_random_splits,
    make_splits,
    read_splits,
    split_summary,
    write_splits,
)
from psy_agents_noaug.errors import ConfigError, DataError

FRACTIONS = (0.8, 0.1, 0.1)
CRITERIA = [f"A.{number}" for number in range(1, 10)]
RATES = dict(zip(CRITERIA, (0.3, 0.25, 0.2, 0.15, 0.1, 0.08, 0.06, 0.04, 0.02), strict=True))


def corpus(n_posts: int, *, authors: int | None = None, seed: int = 0):
    """Posts, and their pairs with all nine criteria."""
    draw = random.Random(seed)
    posts = []
    examples = []
    for i in range(n_posts):
        post = Post(f"p{i}", "text", f"u{draw.randrange(authors)}" if authors else f"p{i}")
        posts.append(post)
        for name in CRITERIA:
            label = int(draw.random() < RATES[name])
            example_id = f"p{i}/{name}"
            examples.append(
                Example(example_id, post.post_id, post.group_id, name, "t", label, True, (), ())
            )
    return posts, examples


def post_of(name: str, group: str | None = None) -> Post:
    return Post(name, "CANARY text", group or name)


def test_single_posts_divide_into_exactly_the_asked_numbers():
    posts, examples = corpus(1003)
    splits = make_splits(examples, posts=posts, fractions=FRACTIONS, seed=42)
    assert [len(ids) for ids in splits.by_name().values()] == [803, 100, 100]
    assert splits.origin == "generated seed=42 fractions=0.8,0.1,0.1"
    assert sorted(splits.split_of()) == sorted(post.post_id for post in posts)


def test_each_criterion_is_as_frequent_in_each_split():
    posts, examples = corpus(1000)
    for seed in range(5):
        splits = make_splits(examples, posts=posts, fractions=FRACTIONS, seed=seed)
        summary, warnings = split_summary(splits, examples, criterion_ids=CRITERIA)
        assert [warning for warning in warnings if "Criterion" in warning] == []
        for name in CRITERIA:
            total = sum(summary[split]["positives"][name] for split in summary)
            for split, fraction in zip(summary, FRACTIONS, strict=True):
                # A random division is off by up to 10 here.
                assert abs(summary[split]["positives"][name] - fraction * total) <= 2.5


def test_the_split_depends_on_the_seed_and_on_no_order():
    posts, examples = corpus(200, authors=120)
    first = make_splits(examples, posts=posts, fractions=FRACTIONS, seed=1)
    for trial in range(5):
        draw = random.Random(trial)
        again = make_splits(
            draw.sample(examples, len(examples)),
            posts=draw.sample(posts, len(posts)),
            fractions=FRACTIONS,
            seed=1,
        )
        assert again == first
    other = make_splits(examples, posts=posts, fractions=FRACTIONS, seed=2)
    assert other.train != first.train
    assert other.fingerprint != first.fingerprint


def test_the_division_of_a_known_corpus_does_not_change_between_versions():
    posts, examples = corpus(30)
    splits = make_splits(examples, posts=posts, fractions=(0.6, 0.2, 0.2), seed=42)
    assert splits.fingerprint == (
        "bccd8f73e95342506f139c06d1a45d3dce9e9bfd193fe07b69e93c98c643e5ac"
    )


@pytest.mark.parametrize("authors", [5, 40, 300])
def test_no_group_is_divided(authors):
    posts, examples = corpus(400, authors=authors)
    for seed in range(3):
        split_of = make_splits(examples, posts=posts, fractions=FRACTIONS, seed=seed).split_of()
        places = {(post.group_id, split_of[post.post_id]) for post in posts}
        assert len(places) == len({post.group_id for post in posts})
        assert set(split_of.values()) == {"train", "val", "test"}


def test_groups_of_uneven_size_come_near_the_asked_numbers():
    posts, examples = corpus(1000, authors=300)
    splits = make_splits(examples, posts=posts, fractions=FRACTIONS, seed=0)
    sizes = [len(ids) for ids in splits.by_name().values()]
    assert all(abs(n - want) <= 5 for n, want in zip(sizes, (800, 100, 100), strict=True))


@pytest.mark.parametrize("groups", [["a", "b", "c"], ["a"] * 5 + ["b"] * 5 + ["c"] * 2])
def test_three_groups_give_each_split_one(groups):
    posts = [post_of(f"p{i}", group) for i, group in enumerate(groups)]
    for seed in range(10):
        splits = make_splits([], posts=posts, fractions=(0.98, 0.01, 0.01), seed=seed)
        assert all(splits.by_name().values())


def test_posts_without_pairs_are_divided_and_those_with_pairs_evenly():
    posts = [post_of(f"p{i}") for i in range(500)]
    examples = [
        Example(f"p{i}/A.1", f"p{i}", f"p{i}", "A.1", "t", 0, True, (), ()) for i in range(200)
    ]
    for seed in range(5):
        splits = make_splits(examples, posts=posts, fractions=FRACTIONS, seed=seed)
        split_of = splits.split_of()
        assert len(split_of) == 500
        counts = Counter(split_of[example.post_id] for example in examples)
        assert counts == {"train": 160, "val": 20, "test": 20}


def test_two_groups_are_not_enough():
    posts = [post_of("p1", "a"), post_of("p2", "a"), post_of("p3", "b")]
    with pytest.raises(DataError, match="at least 3 groups"):
        make_splits([], posts=posts, fractions=FRACTIONS, seed=0)


@pytest.mark.parametrize(
    "fractions",
    [(0.8, 0.2, 0.0), (0.8, 0.1, 0.2), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5), (0.5, 0.5)],
)
def test_impossible_fractions_are_refused(fractions):
    posts, examples = corpus(10)
    with pytest.raises(ConfigError, match="fractions"):
        make_splits(examples, posts=posts, fractions=fractions, seed=0)


def test_twenty_thousand_posts_are_divided_in_seconds():
    posts = [post_of(f"p{i}") for i in range(20_000)]
    examples = [
        Example(f"p{i}/A.1", f"p{i}", f"p{i}", CRITERIA[i % 9], "t", i % 2, True, (), ())
        for i in range(20_000)
    ]
    started = time.perf_counter()
    make_splits(examples, posts=posts, fractions=FRACTIONS, seed=0)
    assert time.perf_counter() - started < 30  # quadratic: minutes


def test_a_written_file_reads_back(tmp_path):
    posts, examples = corpus(50, authors=20)
    splits = make_splits(examples, posts=posts, fractions=FRACTIONS, seed=0)
    write_splits(tmp_path / "splits.json", splits)
    again = read_splits(tmp_path / "splits.json", posts=posts)
    assert again.by_name() == splits.by_name()
    assert again.fingerprint == splits.fingerprint
    assert again.origin == "given: splits.json"


def written(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_a_given_file_is_used_as_it_is(tmp_path):
    path = written(tmp_path, {"format": 1, "train": ["c", "a"], "val": ["b"], "test": ["d"]})
    splits = read_splits(path, posts=[post_of(name) for name in "abcd"])
    assert splits.by_name() == {"train": ("a", "c"), "val": ("b",), "test": ("d",)}


def test_all_faults_of_a_split_file_come_in_one_error(tmp_path):
    posts = [post_of("a", "g"), post_of("b", "g"), post_of("c"), post_of("d"), post_of("e")]
    content = {"format": 2, "train": ["a", "c", "c", "x", 5], "val": ["b", "c"], "test": []}
    with pytest.raises(DataError) as caught:
        read_splits(written(tmp_path, content), posts=posts)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("mine.json is not a valid split of the posts:")
    assert lines[1:] == [
        "  - format: must be 1",
        "  - train: must hold text only (1 entries do not)",
        "  - test: must be a list of post ids that is not empty",
        "  - train: must hold a post once, in one split ('c' is in train already)",
        "  - train: must hold known posts only ('x')",
        "  - val: must hold a post once, in one split ('c' is in train already)",
        "  - post 'd': must be in a split",
        "  - post 'e': must be in a split",
        "  - group 'g': must be in one split (train, val)",
    ]
    assert "CANARY" not in str(caught.value)


def test_a_missing_list_is_a_fault(tmp_path):
    path = written(tmp_path, {"format": 1, "train": ["a"], "test": ["b"]})
    with pytest.raises(DataError, match="val: must be a list"):
        read_splits(path, posts=[post_of("a"), post_of("b")])


def test_an_edited_file_must_not_keep_its_old_fingerprint(tmp_path):
    posts, examples = corpus(20)
    path = tmp_path / "splits.json"
    write_splits(path, make_splits(examples, posts=posts, fractions=FRACTIONS, seed=0))
    content = json.loads(path.read_text("utf-8"))
    content["train"].append(content["test"].pop())
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(DataError, match="fingerprint: must fit the lists"):
        read_splits(path, posts=posts)


@pytest.mark.parametrize("content", ["{not json", "[1]"])
def test_what_is_no_json_object_is_refused(tmp_path, content):
    with pytest.raises(DataError, match=r"mine\.json: .* must be"):
        read_splits(written(tmp_path, content), posts=[post_of("a")])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json: there is no such file"):
        read_splits(tmp_path / "gone.json", posts=[])


def test_the_summary_warns_of_criteria_without_positives_in_val_or_test(tmp_path):
    posts = [post_of(name) for name in "abc"]
    path = written(tmp_path, {"format": 1, "train": ["a"], "val": ["b"], "test": ["c"]})
    splits = read_splits(path, posts=posts)
    examples = [
        Example(f"{p}/A.1", p, p, "A.1", "t", label, True, (), ())
        for p, label in (("a", 1), ("b", 1), ("c", 0))
    ]
    summary, warnings = split_summary(splits, examples, criterion_ids=["A.1", "A.2"])
    assert summary["val"] == {"posts": 1, "pairs": 1, "positives": {"A.1": 1, "A.2": 0}}
    assert warnings[:3] == [
        "Criterion A.2 has no positive pair in val.",
        "Criterion A.1 has no positive pair in test.",
        "Criterion A.2 has no positive pair in test.",
    ]
    assert [warning.partition(",")[0] for warning in warnings[3:]] == [
        "val has 1 authors or posts",
        "test has 1 authors or posts",
    ]


def test_a_random_division_has_the_test_posts_of_scikit_learn():
    posts, _ = corpus(1484)
    splits = make_random_splits(posts, fractions=(0.7, 0.1, 0.2), seed=42)
    ids = [post.post_id for post in posts]
    _, test = train_test_split(ids, test_size=0.2, random_state=42)
    assert splits.test == tuple(sorted(test))
    assert [len(ids) for ids in splits.by_name().values()] == [1039, 148, 297]
    assert splits.origin == "at random seed=42 fractions=0.7,0.1,0.2"
    assert sorted(splits.split_of()) == sorted(ids)


def test_a_random_division_keeps_the_posts_of_an_author_together():
    posts, _ = corpus(300, authors=40)
    splits = make_random_splits(posts, fractions=(0.7, 0.1, 0.2), seed=1)
    split_of = splits.split_of()
    of_author = Counter(post.group_id for post in posts)
    pairs = {(post.group_id, split_of[post.post_id]) for post in posts}
    assert len(pairs) == len(of_author)
    assert len({author for author, name in pairs if name == "test"}) == 8


def test_a_random_division_without_posts_for_train_is_refused():
    posts, _ = corpus(3)
    with pytest.raises(DataError, match="leaves none for train"):
        make_random_splits(posts, fractions=(0.1, 0.2, 0.7), seed=0)
