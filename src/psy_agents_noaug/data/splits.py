"""Train, val and test splits: by group, stratified over criteria or random, reproducible from a file.

`data.folds` divides into folds by the same algorithm.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.validation import Fault, quote_identifier, raise_faults
from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.utils.files import read_json, sha256_of_json, write_json

SPLIT_NAMES = ("train", "val", "test")
# In place of a split: a corpus that is evaluated whole, and all folds of a cross-validation.
WHOLE, CROSS_VALIDATION = "all", "cv"
OUT_OF_FOLD = "out_of_fold"  # likewise: posts judged by the models of folds that did not see them
FILE_FORMAT = 1
FEW_GROUPS = 20
_UNUSED = "unused"


@dataclass(frozen=True, slots=True)
class Splits:
    """The post identifiers of each split, sorted.

    Attributes:
        fingerprint: SHA-256 of the three lists.
        origin: how the splits were made: generated with which settings, or read from which file.
        whole: all posts of a corpus that is not divided; the three lists are then empty.
        unused: posts that are in no split, as those of test are where train and val are cross-validated.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    fingerprint: str
    origin: str
    whole: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def by_name(self) -> dict[str, tuple[str, ...]]:
        """Return the three lists by split name; of a corpus that is not divided one, `WHOLE`.

        Where val is trained on too (`with_val_in_train`), there is none.
        """
        if self.whole:
            return {WHOLE: self.whole}
        lists = {"train": self.train, "val": self.val, "test": self.test}
        return lists if self.val else {name: lists[name] for name in ("train", "test")}

    def with_val_in_train(self) -> "Splits":
        """Return the division of a training that learns val too."""
        return replace(self, train=tuple(sorted((*self.train, *self.val))), val=())

    def split_of(self) -> dict[str, str]:
        """Return the split name of each post."""
        return {post_id: name for name, ids in self.by_name().items() for post_id in ids}


@dataclass(frozen=True, slots=True)
class Group:
    """Posts that stay in one split, and how many of them have each label."""

    group_id: str
    post_ids: tuple[str, ...]
    labels: Mapping[str, int]


def make_splits(
    examples: Sequence[Example],
    *,
    posts: Sequence[Post],
    fractions: tuple[float, float, float],
    seed: int,
) -> Splits:
    """Split all posts by iterative stratification over groups.

    Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data" (ECML PKDD 2011):
    the rarest label is assigned first, each of its groups to the split that needs most of it. Two
    rules are added. A split takes no more posts than its share while another split has room, so that
    posts without groups are split in the exact numbers. No split stays empty.

    The result depends on `seed`, identifiers, groups and labels, not on the order of the arguments.

    Args:
        examples: the labels to stratify by.
        posts: all posts, including those without examples.
        fractions: shares of posts in train, val and test.
        seed: breaks ties.

    Raises:
        ConfigError: `fractions` are not three positive numbers with the sum 1.
        DataError: there are fewer than three groups.
    """
    _check_fractions(fractions)
    groups = groups_of(examples, posts)
    _check_enough(len(groups))
    members = stratify(groups, fractions=fractions, seed=seed)
    return splits_of(members, origin=f"generated seed={seed} fractions={_shown(fractions)}")


def make_random_splits(
    posts: Sequence[Post], *, fractions: tuple[float, float, float], seed: int
) -> Splits:
    """Split all posts at random, as `sklearn.model_selection.train_test_split` does.

    Test is drawn from all posts, val from what is left, both with `random_state=seed`. Where authors are
    known, authors are drawn instead of posts, in the order of their first posts. Unlike that of
    `make_splits`, the result depends on the order of the posts.

    Args:
        posts: in the order of their file.
        fractions: shares of posts (authors where they are known) in train, val and test. As in
            scikit-learn, test is rounded up; val is rounded to the nearest, and has one at least.
        seed: of the draws.

    Raises:
        ConfigError: `fractions` are not three positive numbers with the sum 1.
        DataError: there are too few groups for a part.
    """
    # Imported here because it takes most of a second, and few divisions are random.
    from sklearn.model_selection import train_test_split

    _check_fractions(fractions)
    ids_of: dict[str, list[str]] = defaultdict(list)
    for post in posts:
        ids_of[post.group_id].append(post.post_id)
    _check_enough(len(ids_of))
    n_val = max(1, round(fractions[1] * len(ids_of)))
    n_test = math.ceil(fractions[2] * len(ids_of))
    if n_val + n_test >= len(ids_of):
        raise DataError(
            f"A random division of {len(ids_of)} authors or posts into {_shown(fractions)} leaves none "
            "for train. Add posts, or change `data.split_fractions`."
        )
    rest, test = train_test_split(list(ids_of), test_size=n_test, random_state=seed)
    train, val = train_test_split(rest, test_size=n_val, random_state=seed)
    members = [[post for group in part for post in ids_of[group]] for part in (train, val, test)]
    return splits_of(members, origin=f"at random seed={seed} fractions={_shown(fractions)}")


def _check_fractions(fractions: tuple[float, float, float]) -> None:
    valid = len(fractions) == len(SPLIT_NAMES) and min(fractions) > 0
    if not valid or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ConfigError(
            "`fractions` must be three positive numbers with the sum 1, "
            f"but are {fractions} instead."
        )


def _check_enough(n_groups: int) -> None:
    if n_groups < len(SPLIT_NAMES):
        raise DataError(
            f"Splits need at least 3 groups (authors, or posts), but there are {n_groups}. Add "
            "posts of other authors, or map no column to `group_id` if the authors are not known."
        )


def _shown(fractions: Sequence[float]) -> str:
    return ",".join(f"{fraction:g}" for fraction in fractions)


def shown_split(name: str) -> str:
    """Return how a split is named in messages."""
    return {WHOLE: "the corpus", CROSS_VALIDATION: "all folds"}.get(name, name)


def undivided(posts: Sequence[Post]) -> Splits:
    """Return what stands for the splits of a corpus that is evaluated whole."""
    ids = tuple(sorted(post.post_id for post in posts))
    fingerprint = sha256_of_json({WHOLE: list(ids)})
    return Splits((), (), (), fingerprint=fingerprint, origin="not divided", whole=ids)


def read_splits(path: Path, *, posts: Sequence[Post]) -> Splits:
    """Read the splits of a file: `{"format": 1, "train": [...], "val": [...], "test": [...]}`.

    A fourth list, `unused`, may have posts that are in none of them.

    Raises:
        DataError: lists all faults: not JSON, a missing, wrong or empty list, posts that are unknown,
            in no split or in two, a group in two splits, or a `fingerprint` of other lists.
    """
    content, faults = read_division(path, what="a split file")
    members: dict[str, list[str]] = {}
    for name in (*SPLIT_NAMES, *([_UNUSED] if _UNUSED in content else [])):
        listed = content.get(name)
        if not isinstance(listed, list) or not listed:
            faults.append(Fault(name, "must be a list of post ids that is not empty"))
            listed = []
        not_text = sum(not isinstance(post_id, str) for post_id in listed)
        if not_text:
            faults.append(Fault(name, "must hold text only", f"{not_text} entries do not"))
        members[name] = [post_id for post_id in listed if isinstance(post_id, str)]
    faults += membership_faults(members, posts)
    unused = tuple(sorted(members.pop(_UNUSED, [])))
    splits = splits_of(list(members.values()), origin=f"given: {path.name}")
    faults = faults or fingerprint_faults(content, splits.fingerprint)
    raise_faults(f"{path} is not a valid split of the posts:", faults)
    return replace(splits, unused=unused)


def read_division(path: Path, *, what: str) -> tuple[dict[str, Any], list[Fault]]:
    """Return what a file that divides the posts holds, and whether its format is wrong.

    Args:
        path: the file.
        what: it is called.

    Raises:
        DataError: it is no JSON object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: {what} must be a JSON object, but is not.")
    is_known = content.get("format") == FILE_FORMAT
    return content, [] if is_known else [Fault("format", f"must be {FILE_FORMAT}")]


def fingerprint_faults(content: Mapping[str, Any], fingerprint: str) -> list[Fault]:
    """Return whether the fingerprint of a file that divides the posts is that of another division."""
    if content.get("fingerprint", fingerprint) == fingerprint:
        return []
    return [Fault("fingerprint", "must fit the lists; remove it if they were edited on purpose")]


def write_splits(path: Path, splits: Splits) -> None:
    """Write a file for `read_splits`, with the fingerprint and the origin."""
    lists = {name: list(post_ids) for name, post_ids in splits.by_name().items()}
    if splits.unused:
        lists[_UNUSED] = list(splits.unused)
    described = {"fingerprint": splits.fingerprint, "origin": splits.origin}
    write_json(path, {"format": FILE_FORMAT, **described, **lists})


def split_summary(
    splits: Splits, examples: Sequence[Example], *, criterion_ids: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Count posts, pairs and positive pairs per criterion in each split.

    Returns:
        {split: {"posts", "pairs", "positives": {criterion_id: count}}}, and warnings: of each
        criterion without a positive pair where the model is judged, where its recall and F1 are
        undefined, and of few authors (or posts) there.
    """
    split_of = splits.split_of()
    pairs = Counter(split_of[example.post_id] for example in examples)
    positives = Counter(
        (split_of[example.post_id], example.criterion_id) for example in examples if example.label
    )
    summary = {
        name: {
            "posts": len(post_ids),
            "pairs": pairs[name],
            "positives": {
                criterion_id: positives[name, criterion_id] for criterion_id in criterion_ids
            },
        }
        for name, post_ids in splits.by_name().items()
    }
    judged = [name for name in summary if name != "train"]
    warnings = [
        f"Criterion {criterion_id} has no positive pair in {shown_split(name)}."
        for name in judged
        for criterion_id in criterion_ids
        if positives[name, criterion_id] == 0
    ]
    groups: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        groups[split_of[example.post_id]].add(example.group_id)
    fitted = {"val": "the thresholds and the checkpoint that it chooses"}
    warnings += [
        f"{shown_split(name)} has {len(groups[name])} authors or posts, fewer than {FEW_GROUPS}: "
        f"{fitted.get(name, 'its figures')} "
        "hang on a few of them, and intervals are wide or missing."
        for name in judged
        if len(groups[name]) < FEW_GROUPS
    ]
    return summary, warnings


def groups_of(examples: Sequence[Example], posts: Sequence[Post]) -> list[Group]:
    """Return the groups of the posts, with the labels of their posts in `examples`."""
    labels_of: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        # "has pairs" is a label too, because under "drop" some posts have no pairs.
        labels_of[example.post_id].add("has pairs")
        if example.label:
            labels_of[example.post_id].add(f"positive {example.criterion_id}")
    members: dict[str, list[str]] = defaultdict(list)
    for post in posts:
        members[post.group_id].append(post.post_id)
    return [
        Group(
            group_id,
            tuple(sorted(post_ids)),
            Counter(label for post_id in post_ids for label in labels_of[post_id]),
        )
        for group_id, post_ids in members.items()
    ]


def stratify(groups: Sequence[Group], *, fractions: Sequence[float], seed: int) -> list[list[str]]:
    """Return the post ids of each part, by the algorithm of `make_splits`.

    Args:
        groups: not fewer than parts.
        fractions: share of posts in each part; they sum to 1.
        seed: breaks ties.
    """
    members: list[list[str]] = [[] for _ in fractions]
    for group, part in zip(groups, _assigned(groups, fractions, seed), strict=True):
        members[part].extend(group.post_ids)
    return members


def _assigned(groups: Sequence[Group], fractions: Sequence[float], seed: int) -> list[int]:
    """Return the index of the part of each group."""
    keys = [_tie_break(seed, group.group_id) for group in groups]
    order = sorted(range(len(groups)), key=lambda g: (-len(groups[g].post_ids), keys[g]))
    room = _shares(sum(len(group.post_ids) for group in groups), fractions)
    totals = Counter[str]()
    for group in groups:
        totals.update(group.labels)
    needed = {label: [total * f for f in fractions] for label, total in totals.items()}
    assigned = [-1] * len(groups)
    filled: set[int] = set()
    n_left = len(groups)

    def assign(g: int, label: str | None) -> None:
        nonlocal n_left
        size = len(groups[g].post_ids)
        empty = [split for split in range(len(fractions)) if split not in filled]
        options = empty if n_left <= len(empty) else list(range(len(fractions)))
        most = max(room[split] for split in options)
        # A group that fits in no split goes to the one with most room.
        options = [split for split in options if room[split] >= min(size, most)]
        split = max(
            options,
            key=lambda s: (
                needed[label][s] if label is not None else room[s],
                room[s],
                _tie_break(seed, f"{groups[g].group_id}\0{s}"),
            ),
        )
        assigned[g] = split
        filled.add(split)
        n_left -= 1
        room[split] -= size
        for name, count in groups[g].labels.items():
            needed[name][split] -= count

    remaining = Counter(totals)
    while any(remaining.values()):
        rarest = min(
            (name for name, count in remaining.items() if count), key=lambda n: (remaining[n], n)
        )
        for g in order:
            if assigned[g] < 0 and rarest in groups[g].labels:
                assign(g, rarest)
                remaining.subtract(groups[g].labels)
    for g in order:
        if assigned[g] < 0:
            assign(g, None)
    return assigned


def _shares(total: int, fractions: Sequence[float]) -> list[int]:
    """Return whole numbers of posts that sum to `total`, at least 1 each (largest remainders)."""
    exact = [total * fraction for fraction in fractions]
    shares = [max(1, math.floor(share + 1e-9)) for share in exact]
    while sum(shares) < total:
        shares[max(range(len(shares)), key=lambda s: (exact[s] - shares[s], -s))] += 1
    while sum(shares) > total:
        shares[
            max(range(len(shares)), key=lambda s: (shares[s] > 1, shares[s] - exact[s], -s))
        ] -= 1
    return shares


def _tie_break(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()


def splits_of(members: Sequence[Sequence[str]], *, origin: str) -> Splits:
    """Return the splits whose train, val and test have these posts."""
    train, val, test = (tuple(sorted(post_ids)) for post_ids in members)
    lists = {"train": train, "val": val, "test": test}
    return Splits(train, val, test, fingerprint=sha256_of_json(lists), origin=origin)


def membership_faults(
    members: Mapping[str, Sequence[str]], posts: Sequence[Post], *, part: str = "split"
) -> list[Fault]:
    """Return what is wrong with a division: unknown posts, posts in no part or in two, divided groups.

    Args:
        members: post ids of each part, by its name.
        posts: all posts of the corpus.
        part: what a part is called.
    """
    faults: list[Fault] = []
    group_of = {post.post_id: post.group_id for post in posts}
    placed: dict[str, str] = {}
    for name, post_ids in members.items():
        for post_id in post_ids:
            if post_id not in group_of:
                faults.append(Fault(name, "must hold known posts only", quote_identifier(post_id)))
            elif post_id in placed:
                detail = f"{quote_identifier(post_id)} is in {placed[post_id]} already"
                faults.append(Fault(name, f"must hold a post once, in one {part}", detail))
            else:
                placed[post_id] = name
    for post_id in sorted(group_of.keys() - placed.keys()):
        faults.append(Fault(f"post {quote_identifier(post_id)}", f"must be in a {part}"))
    splits_of_group: dict[str, set[str]] = defaultdict(set)
    for post_id, name in placed.items():
        splits_of_group[group_of[post_id]].add(name)
    for group_id, names in sorted(splits_of_group.items()):
        if len(names) > 1:
            detail = ", ".join(name for name in members if name in names)
            faults.append(
                Fault(f"group {quote_identifier(group_id)}", f"must be in one {part}", detail)
            )
    return faults
