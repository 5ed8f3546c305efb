import json
import random
from pathlib import Path

import pytest

from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.folds import make_folds, read_folds, splits_of_fold, write_folds
from psy_agents_noaug.errors import DataError

RATES = {"A.1": 0.4, "A.2": 0.15, "A.3": 0.05}


def corpus(n_posts: int, *, authors: int | None = None):
    draw = random.Random(0)
    posts, examples = [], []
    for i in range(n_posts):
        post = Post(f"p{i}", "CANARY", f"u{draw.randrange(authors)}" if authors else f"p{i}")
        posts.append(post)
        for name, rate in RATES.items():
            label = int(draw.random() < rate)
            ids = (f"p{i}/{name}", post.post_id, post.group_id, name)
            examples.append(Example(*ids, "t", label, True, (), ()))
    return posts, examples


def test_folds_are_equal_in_size_and_in_each_criterion():
    posts, examples = corpus(400)
    folds = make_folds(examples, posts=posts, n_folds=5, seed=0)
    assert [len(members) for members in folds.members] == [80] * 5
    met = {(e.post_id, e.criterion_id) for e in examples if e.label}
    for name in RATES:
        counts = [sum((p, name) in met for p in members) for members in folds.members]
        assert max(counts) - min(counts) <= 2  # at random the first criterion differs by about 10


def test_every_post_is_in_one_fold_and_no_author_in_two():
    posts, examples = corpus(200, authors=40)
    folds = make_folds(examples, posts=posts, n_folds=4, seed=0)
    fold_of = {p: n for n, members in enumerate(folds.members) for p in members}
    assert sorted(p for members in folds.members for p in members) == sorted(
        post.post_id for post in posts
    )
    of_author: dict[str, set[int]] = {}
    for post in posts:
        of_author.setdefault(post.group_id, set()).add(fold_of[post.post_id])
    assert {len(own) for own in of_author.values()} == {1}


def test_the_splits_of_a_fold_test_it_and_share_no_author_with_it():
    posts, examples = corpus(200, authors=40)
    folds = make_folds(examples, posts=posts, n_folds=4, seed=0)
    author = {post.post_id: post.group_id for post in posts}
    for number in range(1, 5):
        splits = splits_of_fold(folds, number, examples, posts=posts, val_share=0.2, seed=0)
        assert splits.test == folds.members[number - 1]
        assert len(splits.train) + len(splits.val) + len(splits.test) == len(posts)
        parts = [{author[p] for p in ids} for ids in splits.by_name().values()]
        assert not (parts[0] & parts[1])
        assert not (parts[0] & parts[2])
        assert not (parts[1] & parts[2])
        assert len(splits.val) / (len(splits.train) + len(splits.val)) == pytest.approx(
            0.2, abs=0.06
        )


def test_folds_are_read_as_they_were_written_and_depend_on_no_order(tmp_path: Path):
    posts, examples = corpus(60, authors=20)
    folds = make_folds(examples, posts=posts, n_folds=3, seed=7)
    write_folds(tmp_path / "folds.json", folds)
    again = read_folds(tmp_path / "folds.json", posts=posts)
    assert (again.members, again.fingerprint) == (folds.members, folds.fingerprint)
    assert make_folds(examples[::-1], posts=posts[::-1], n_folds=3, seed=7) == folds
    assert make_folds(examples, posts=posts, n_folds=3, seed=8) != folds


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        ([], ["must be a JSON object"]),
        ({"format": 2, "folds": [["a", "b"]]}, ["format: must be 1", "at least 2 lists"]),
        (
            {"format": 1, "folds": [["a", "z"], ["a", "b"], [], [3]]},
            [
                "known posts only",
                "once, in one fold",
                "post 'c': must be in a fold",
                "fold 3: must be a list",
                "fold 4: must be a list",
            ],
        ),
        ({"format": 1, "folds": [["a"], ["b", "c"]]}, ["group 'u': must be in one fold"]),
        ({"format": 1, "fingerprint": "0", "folds": [["a", "b"], ["c"]]}, ["must fit the lists"]),
    ],
)
def test_all_faults_of_a_file_are_told_at_once(tmp_path: Path, content, faults):
    path = tmp_path / "folds.json"
    path.write_text(json.dumps(content))
    posts = [Post("a", "CANARY", "u"), Post("b", "CANARY", "u"), Post("c", "CANARY", "c")]
    with pytest.raises(DataError) as error:
        read_folds(path, posts=posts)
    for fault in faults:
        assert fault in str(error.value)
    assert "CANARY" not in str(error.value)


def test_more_folds_than_authors_are_refused():
    posts, examples = corpus(20, authors=3)
    with pytest.raises(DataError, match="4 folds need at least 4 groups"):
        make_folds(examples, posts=posts, n_folds=4, seed=0)
