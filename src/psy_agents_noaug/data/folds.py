"""Folds of a cross-validation: by group, stratified over criteria, reproducible from a file."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.splits import (
    FILE_FORMAT,
    Splits,
    fingerprint_faults,
    groups_of,
    membership_faults,
    read_division,
    splits_of,
    stratify,
)
from psy_agents_noaug.data.validation import Fault, quote_identifier, raise_faults
from psy_agents_noaug.errors import DataError, first_of
from psy_agents_noaug.utils.files import sha256_of_json, write_json

MIN_FOLDS = 2


@dataclass(frozen=True, slots=True)
class Folds:
    """The post identifiers of each fold, sorted. The first fold is fold 1.

    Attributes:
        members: of each fold; every post is in one.
        fingerprint: SHA-256 of the lists.
        origin: how the folds were made: generated with which settings, or read from which file.
    """

    members: tuple[tuple[str, ...], ...]
    fingerprint: str
    origin: str


def make_folds(
    examples: Sequence[Example], *, posts: Sequence[Post], n_folds: int, seed: int
) -> Folds:
    """Divide all posts into folds of equal size by the algorithm of `make_splits`.

    Args:
        examples: the labels to stratify by.
        posts: all posts, including those without examples.
        n_folds: number of folds.
        seed: breaks ties.

    Raises:
        DataError: there are fewer groups than a fold, train and val of each run need.
    """
    groups = groups_of(examples, posts)
    needed = max(n_folds, MIN_FOLDS + 1)
    if len(groups) < needed:
        raise DataError(
            f"{n_folds} folds need at least {needed} groups (authors, or posts), but there are "
            f"{len(groups)}. Lower `folds`, or add posts of other authors."
        )
    members = stratify(groups, fractions=[1 / n_folds] * n_folds, seed=seed)
    return _folds(members, origin=f"generated seed={seed} folds={n_folds}")


def without_posts(
    left_out: Set[str], posts: Sequence[Post], examples: Sequence[Example]
) -> tuple[list[Post], list[Example]]:
    """Return the posts and the examples that are not of posts to be left out."""
    return (
        [post for post in posts if post.post_id not in left_out],
        [example for example in examples if example.post_id not in left_out],
    )


def read_folds(path: Path, *, posts: Sequence[Post], unused: Set[str] = frozenset()) -> Folds:
    """Read the folds of a file: `{"format": 1, "folds": [[post ids of fold 1], [...], ...]}`.

    Args:
        path: of the file.
        posts: all posts that must be in a fold.
        unused: posts of the corpus that must be in none, as those of test.

    Raises:
        DataError: lists all faults: not JSON, fewer than two folds, a fold that is no list of ids or
            empty, posts that are unknown or `unused`, in no fold or in two, a group in two folds, or a
            `fingerprint` of other folds.
    """
    content, faults = read_division(path, what="a file of folds")
    listed = content.get("folds")
    if not isinstance(listed, list) or len(listed) < MIN_FOLDS:
        faults.append(Fault("folds", f"must be a list of at least {MIN_FOLDS} lists of post ids"))
        listed = []
    members: dict[str, list[str]] = {}
    for number, fold in enumerate(listed, start=1):
        is_list = isinstance(fold, list) and all(isinstance(post_id, str) for post_id in fold)
        if not is_list or not fold:
            faults.append(Fault(f"fold {number}", "must be a list of post ids that is not empty"))
        members[f"fold {number}"] = fold if is_list else []
    for name, post_ids in members.items():
        if strangers := sorted(unused & set(post_ids)):
            rule = "must hold posts of train and val alone, none of test"
            faults.append(Fault(name, rule, first_of(list(map(quote_identifier, strangers)))))
            members[name] = [post_id for post_id in post_ids if post_id not in unused]
    if listed:
        faults += membership_faults(members, posts, part="fold")
    folds = _folds(list(members.values()), origin=f"given: {path.name}")
    faults = faults or fingerprint_faults(content, folds.fingerprint)
    raise_faults(f"{path} does not hold folds of the posts:", faults)
    return folds


def write_folds(path: Path, folds: Folds) -> None:
    """Write a file for `read_folds`, with the fingerprint and the origin."""
    write_json(
        path,
        {
            "format": FILE_FORMAT,
            "fingerprint": folds.fingerprint,
            "origin": folds.origin,
            "folds": [list(post_ids) for post_ids in folds.members],
        },
    )


def splits_of_fold(
    folds: Folds,
    number: int,
    examples: Sequence[Example],
    *,
    posts: Sequence[Post],
    unused: Sequence[str] = (),
    val_share: float,
    seed: int,
) -> Splits:
    """Return the splits whose test is a fold; val is drawn from the other folds as in `make_splits`.

    They depend on the fold, not on the seed of a training.

    Args:
        folds: from `make_folds` or `read_folds`.
        number: of the fold, from 1.
        examples: the labels to stratify by.
        posts: all posts of the folds.
        unused: posts of the corpus that are in no fold.
        val_share: of the posts of the other folds.
        seed: breaks ties.

    Raises:
        DataError: the other folds are of one group.
    """
    test = folds.members[number - 1]
    held_out = set(test)
    others, other_examples = without_posts(held_out, posts, examples)
    groups = groups_of(other_examples, others)
    if len(groups) < MIN_FOLDS:
        raise DataError(
            f"All posts but those of fold {number} are of one group (author, or post), but train and "
            "val need two. Use other folds, or more of them."
        )
    train, val = stratify(groups, fractions=[1 - val_share, val_share], seed=seed)
    splits = splits_of([train, val, test], origin=f"fold {number} of {len(folds.members)}")
    return replace(splits, unused=tuple(unused))


def _folds(members: Sequence[Sequence[str]], *, origin: str) -> Folds:
    ordered = tuple(tuple(sorted(post_ids)) for post_ids in members)
    return Folds(ordered, sha256_of_json([list(ids) for ids in ordered]), origin)
