"""The bundled synthetic corpus: its bank, its splits, and that the generator made it."""

import csv
import importlib.util
import json
import re
import sys
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from types import ModuleType

import pytest

from psy_agents_noaug.data import sample

TOOL = Path(__file__).parents[3] / "tools" / "sample_corpus"
SAMPLE = Path(sample.__path__[0])
OUTPUTS = ("redsm5_posts.csv", "redsm5_annotations.csv", "splits.json")
NEGATIVE_KINDS = ("past_recovered", "someone_else", "figurative", "denied")


def _import_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", TOOL / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = _import_tool()


def read_rows(name: str, *, folder: Path = SAMPLE) -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def bank() -> list[dict[str, str]]:
    return read_rows("sentence_bank.csv", folder=TOOL)


@pytest.fixture(scope="module")
def posts() -> dict[str, str]:
    return {row["post_id"]: row["text"] for row in read_rows("redsm5_posts.csv")}


@pytest.fixture(scope="module")
def annotations() -> list[dict[str, str]]:
    return read_rows("redsm5_annotations.csv")


@pytest.fixture(scope="module")
def splits() -> dict[str, list[str]]:
    document = json.loads((SAMPLE / "splits.json").read_text(encoding="utf-8"))
    assert document.pop("format") == 1
    return document


@pytest.fixture(scope="module")
def sentences(bank: list[dict[str, str]], posts: dict[str, str]) -> dict[str, list[str]]:
    """The bank sentences found in each post, by their text alone."""
    texts = [row["text"] for row in bank]
    return {post_id: [t for t in texts if t in post] for post_id, post in posts.items()}


def test_the_bank_has_enough_sentences_of_every_kind(bank):
    counts = Counter((row["criterion_id"], row["kind"]) for row in bank)
    for criterion in generate.SYMPTOMS:
        assert counts[criterion, "positive"] >= 42
        per_kind = [counts[criterion, kind] for kind in NEGATIVE_KINDS]
        assert sum(per_kind) >= 18
        assert min(per_kind) >= 4
    neutral = [row for row in bank if row["kind"] == "neutral"]
    assert len(neutral) >= 260
    assert len({row["theme"] for row in neutral}) >= 20


def test_status_and_criterion_follow_from_the_kind(bank):
    expected = {"positive": "1", "neutral": ""} | dict.fromkeys(NEGATIVE_KINDS, "0")
    for row in bank:
        assert row["status"] == expected[row["kind"]]
        assert bool(row["criterion_id"]) == (row["kind"] != "neutral")
        assert bool(row["theme"]) == (row["kind"] == "neutral")


def test_no_two_bank_sentences_are_nearly_the_same(bank):
    words = [
        frozenset(re.findall(r"\w+", re.sub(r"['’]", "", row["text"].lower()))) for row in bank
    ]
    for one, other in combinations(words, 2):
        # Sets this different in size cannot reach the limit, which spares most of the pairs.
        if min(len(one), len(other)) > 0.8 * max(len(one), len(other)):
            assert len(one & other) <= 0.8 * len(one | other)


def test_no_bank_sentence_is_part_of_another(bank):
    everything = "\n".join(row["text"] for row in bank)
    assert all(everything.count(row["text"]) == 1 for row in bank)


def test_the_bank_has_characters_outside_ascii(bank):
    characters = set("".join(row["text"] for row in bank))
    assert {"é", "…", "’", "“"} <= characters
    assert any(ord(character) > 0xFFFF for character in characters)


def test_committed_files_are_what_the_generator_writes(tmp_path):
    generate.write_corpus(tmp_path)
    for name in OUTPUTS:
        assert (tmp_path / name).read_bytes() == (SAMPLE / name).read_bytes(), name


def test_another_seed_gives_another_corpus(tmp_path):
    generate.write_corpus(tmp_path, generate.DEFAULT_SEED + 1)
    for name in OUTPUTS:
        assert (tmp_path / name).read_bytes() != (SAMPLE / name).read_bytes(), name


def test_the_splits_divide_the_posts(splits, posts):
    members = [post_id for split in ("train", "val", "test") for post_id in splits[split]]
    assert sorted(members) == sorted(posts)
    assert all(splits[split] == sorted(splits[split]) for split in splits)
    assert {split: len(splits[split]) for split in splits} == {"train": 190, "val": 65, "test": 65}


def test_no_sentence_is_in_two_splits(splits, sentences):
    parts = [{t for post_id in splits[split] for t in sentences[post_id]} for split in splits]
    assert all(one.isdisjoint(other) for one, other in combinations(parts, 2))


def test_every_post_is_made_of_4_to_14_different_bank_sentences(posts, sentences):
    for post_id, found in sentences.items():
        assert 4 <= len(found) <= 14
        left = posts[post_id]
        for text in sorted(found, key=len, reverse=True):
            assert left.count(text) == 1
            left = left.replace(text, "")
        assert not left.strip()


def test_some_posts_have_paragraphs(posts):
    assert 0.1 < sum("\n\n" in text for text in posts.values()) / len(posts) < 0.3


def test_every_positive_sentence_is_used(bank, sentences):
    used = {text for found in sentences.values() for text in found}
    assert {row["text"] for row in bank if row["kind"] == "positive"} <= used


def test_every_annotated_sentence_occurs_verbatim_in_its_post(annotations, posts):
    for row in annotations:
        assert row["sentence_text"] in posts[row["post_id"]]


def test_annotations_say_what_the_bank_says(annotations, bank):
    rows = {row["text"]: row for row in bank}
    for row in annotations:
        source = rows[row["sentence_text"]]
        symptom = generate.SYMPTOMS.get(source["criterion_id"], "SPECIAL_CASE")
        assert row["DSM5_symptom"] == symptom
        assert row["explanation"] == generate.EXPLANATIONS[source["kind"]]
        if symptom != "SPECIAL_CASE":
            assert row["status"] == source["status"]


def test_every_criterion_sentence_in_a_post_is_annotated(annotations, bank, sentences):
    annotated = {(row["post_id"], row["sentence_text"]) for row in annotations}
    about_a_criterion = {row["text"] for row in bank if row["criterion_id"]}
    for post_id, found in sentences.items():
        assert all((post_id, t) in annotated for t in found if t in about_a_criterion)


def test_a_sentence_id_is_the_place_of_the_sentence_in_its_post(annotations, posts, sentences):
    for row in annotations:
        post_id, text = row["post_id"], posts[row["post_id"]]
        order = sorted(sentences[post_id], key=text.index)
        assert row["sentence_id"] == f"{post_id}_{order.index(row['sentence_text'])}"


def test_special_cases_are_few_and_in_train(annotations, splits):
    special = [row["post_id"] for row in annotations if row["DSM5_symptom"] == "SPECIAL_CASE"]
    assert len(special) == 6
    assert set(special) <= set(splits["train"])


def test_a_negative_is_never_about_a_criterion_that_its_post_states(annotations):
    stated = {(r["post_id"], r["DSM5_symptom"]) for r in annotations if r["status"] == "1"}
    denied = {(r["post_id"], r["DSM5_symptom"]) for r in annotations if r["status"] == "0"}
    assert stated.isdisjoint(denied)


def test_every_split_has_posts_for_every_criterion_and_posts_with_none(annotations, splits):
    stated = {
        (row["post_id"], row["DSM5_symptom"])
        for row in annotations
        if row["status"] == "1" and row["DSM5_symptom"] != "SPECIAL_CASE"
    }
    for members in splits.values():
        per_criterion = Counter(symptom for post_id, symptom in stated if post_id in members)
        per_post = Counter(post_id for post_id, _ in stated if post_id in members)
        assert min(per_criterion[name] for name in generate.SYMPTOMS.values()) >= 6
        assert max(per_post.values()) <= 3
        assert 0.9 <= sum(per_post.values()) / len(members) <= 1.2
        assert 0.2 <= 1 - len(per_post) / len(members) <= 0.3


def test_the_order_of_ids_says_nothing_about_the_split(splits):
    split_of = {post_id: split for split in splits for post_id in splits[split]}
    ordered = [split_of[post_id] for post_id in sorted(split_of)]
    changes = sum(one != other for one, other in pairwise(ordered))
    # In random order about 56 in 100 neighbours differ; posts in split order would have 2 changes.
    assert 0.45 < changes / len(ordered) < 0.65
