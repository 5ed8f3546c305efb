"""Compose the bundled synthetic corpus from a hand-written bank of sentences.

Run as ``python tools/sample_corpus/generate.py [--out DIR] [--seed N]``. The bank is
split before posts are composed, so no sentence is in two splits. The same seed gives
byte-identical files.
"""

import argparse
import csv
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

BANK_FILE = Path(__file__).with_name("sentence_bank.csv")
SAMPLE = Path(__file__).parents[2] / "src" / "psy_agents_noaug" / "data" / "sample"
ANNOTATION_COLUMNS = "post_id,sentence_id,sentence_text,DSM5_symptom,status,explanation"
DEFAULT_SEED = 1
_NAMES = (
    "DEPRESSED_MOOD ANHEDONIA APPETITE_CHANGE SLEEP_ISSUES PSYCHOMOTOR FATIGUE WORTHLESSNESS "
    "COGNITIVE_ISSUES SUICIDAL_THOUGHTS"
)
SYMPTOMS = {f"A.{number}": name for number, name in enumerate(_NAMES.split(), start=1)}
EXPLANATIONS = {
    "positive": "Synthetic: states the criterion for the writer now.",
    "past_recovered": "Synthetic: the writer had this in the past and has recovered.",
    "someone_else": "Synthetic: describes somebody other than the writer.",
    "figurative": "Synthetic: uses the words figuratively, not as a symptom.",
    "denied": "Synthetic: the writer says that the criterion is absent.",
    "neutral": "Synthetic: set aside as a special case, no criterion.",
}

# Numbers of posts in a split that state 0, 1, 2 and 3 criteria.
SPLIT_PLANS = {"train": (49, 90, 40, 11), "val": (17, 30, 14, 4), "test": (17, 30, 14, 4)}
HELD_OUT_FRACTION = 0.2
NEGATIVE_WEIGHTS = (0.42, 0.36, 0.22)  # probabilities of 0, 1 and 2 explicit negatives per post
MIN_SENTENCES, MAX_SENTENCES = 4, 14
LENGTH_SKEW = 3  # most posts are short, because a small encoder reads about 128 tokens
FAVOURITE_THEME_RATE = 0.6
PARAGRAPHED_POST_RATE, PARAGRAPH_BREAK_RATE = 0.2, 0.3
SPECIAL_CASES = 6


@dataclass(frozen=True)
class Sentence:
    """One row of the bank; ``criterion`` is empty for a neutral sentence."""

    criterion: str
    kind: str
    theme: str
    text: str


@dataclass
class Post:
    """A composed post."""

    split: str
    sentences: list[Sentence]
    breaks: set[int]  # indices of the sentences that start a paragraph
    special: int | None = None  # index of the sentence annotated SPECIAL_CASE


class SentencePool:
    """Draws sentences at random. Every sentence is drawn once before any is drawn again."""

    def __init__(self, sentences: Iterable[Sentence], rng: random.Random) -> None:
        self._sentences, self._rng = list(sentences), rng
        self._remaining: list[Sentence] = []

    def draw(self, exclude: Sequence[Sentence]) -> Sentence | None:
        """Return the next sentence that is not in ``exclude``, or None if all are."""
        if all(sentence in exclude for sentence in self._sentences):
            return None
        # If all remaining sentences are excluded, the next round follows them.
        while all(sentence in exclude for sentence in self._remaining):
            self._remaining += self._rng.sample(self._sentences, len(self._sentences))
        drawn = next(sentence for sentence in self._remaining if sentence not in exclude)
        self._remaining.remove(drawn)
        return drawn


def read_bank(path: Path = BANK_FILE) -> list[Sentence]:
    """Read the sentence bank."""
    with path.open(encoding="utf-8", newline="") as handle:
        return [
            Sentence(row["criterion_id"], row["kind"], row["theme"], row["text"])
            for row in csv.DictReader(handle)
        ]


def split_bank(bank: Iterable[Sentence], rng: random.Random) -> dict[str, list[Sentence]]:
    """Split the bank, stratified by criterion, kind and theme."""
    strata: dict[tuple[str, str, str], list[Sentence]] = defaultdict(list)
    for s in bank:
        strata[s.criterion, s.kind, s.theme].append(s)
    parts: dict[str, list[Sentence]] = {split: [] for split in SPLIT_PLANS}
    for stratum in strata.values():
        rng.shuffle(stratum)
        held_out = round(HELD_OUT_FRACTION * len(stratum))
        parts["val"] += stratum[:held_out]
        parts["test"] += stratum[held_out : 2 * held_out]
        parts["train"] += stratum[2 * held_out :]
    return parts


def compose_split(split: str, part: Sequence[Sentence], rng: random.Random) -> list[Post]:
    """Compose the posts of one split from its part of the bank."""
    positives = [s for s in part if s.kind == "positive"]
    negatives = [s for s in part if s.kind not in ("positive", "neutral")]
    positive = {c: SentencePool((s for s in positives if s.criterion == c), rng) for c in SYMPTOMS}
    negative = {c: SentencePool((s for s in negatives if s.criterion == c), rng) for c in SYMPTOMS}
    neutral = [s for s in part if s.kind == "neutral"]
    themes = sorted({s.theme for s in neutral})
    by_theme = {t: SentencePool((s for s in neutral if s.theme == t), rng) for t in themes}
    any_theme = SentencePool(neutral, rng)  # has more sentences than a post, so it never gives None

    posts, stated = [], Counter[str]()
    n_positives = [
        n for n, posts_with_n in enumerate(SPLIT_PLANS[split]) for _ in range(posts_with_n)
    ]
    rng.shuffle(n_positives)
    for n_positive in n_positives:
        # The least stated criteria come first, which balances them within the split.
        ranked = sorted(SYMPTOMS, key=lambda c: (stated[c], rng.random()))
        criteria, others = ranked[:n_positive], ranked[n_positive:]
        stated.update(criteria)
        pools = [positive[c] for c in criteria]
        # Every second time another sentence, so that each split uses all of its positive sentences.
        pools += [positive[c] for c in criteria if stated[c] % 2]
        n_negative = rng.choices((0, 1, 2), NEGATIVE_WEIGHTS)[0]
        pools += [negative[c] for c in rng.sample(others, n_negative)]
        sentences: list[Sentence] = []
        for pool in pools:
            sentences += filter(None, [pool.draw(sentences)])
        extra = (MAX_SENTENCES - MIN_SENTENCES + 1) * rng.random() ** LENGTH_SKEW
        length = max(MIN_SENTENCES + int(extra), len(sentences) + 1)
        favourites = rng.sample(themes, rng.choice((1, 2)))
        while len(sentences) < length:
            is_favourite = rng.random() < FAVOURITE_THEME_RATE
            pool = by_theme[rng.choice(favourites)] if is_favourite else any_theme
            sentences += filter(None, [pool.draw(sentences) or any_theme.draw(sentences)])
        rng.shuffle(sentences)
        breaks: set[int] = set()
        if rng.random() < PARAGRAPHED_POST_RATE:
            breaks = {i for i in range(1, length) if rng.random() < PARAGRAPH_BREAK_RATE}
            breaks.add(rng.randrange(1, length))
        posts.append(Post(split, sentences, breaks))
    return posts


def compose(seed: int = DEFAULT_SEED) -> list[Post]:
    """Compose the posts, in random order. The position of a post becomes its id."""
    rng = random.Random(seed)
    parts = split_bank(read_bank(), rng)
    posts = [post for split in SPLIT_PLANS for post in compose_split(split, parts[split], rng)]
    rng.shuffle(posts)
    for post in rng.sample([p for p in posts if p.split == "train"], SPECIAL_CASES):
        post.special = rng.choice([i for i, s in enumerate(post.sentences) if not s.criterion])
    return posts


def write_corpus(out: Path, seed: int = DEFAULT_SEED) -> int:
    """Write the three files of the corpus to ``out``. Return the number of posts."""
    texts: list[Sequence[object]] = [("post_id", "text")]
    annotations: list[Sequence[object]] = [ANNOTATION_COLUMNS.split(",")]
    splits: dict[str, list[str]] = {split: [] for split in SPLIT_PLANS}
    for number, post in enumerate(posts := compose(seed), start=1):
        post_id = f"syn_{number:04d}"
        splits[post.split].append(post_id)
        text = ""
        for index, sentence in enumerate(post.sentences):
            text += ("\n\n" if index in post.breaks else " ") * (index > 0) + sentence.text
            if sentence.criterion or index == post.special:
                symptom = SYMPTOMS.get(sentence.criterion, "SPECIAL_CASE")
                status = int(sentence.kind in ("positive", "neutral"))
                key, why = f"{post_id}_{index}", EXPLANATIONS[sentence.kind]
                annotations.append((post_id, key, sentence.text, symptom, status, why))
        texts.append((post_id, text))

    out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("redsm5_posts.csv", texts), ("redsm5_annotations.csv", annotations)):
        with (out / name).open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle, lineterminator="\n").writerows(rows)
    document = json.dumps({"format": 1, **splits}, indent=1) + "\n"
    (out / "splits.json").write_bytes(document.encode())
    return len(posts)


def main() -> None:
    """Write the corpus, from the command line."""
    parser = argparse.ArgumentParser(description="Compose the bundled synthetic corpus.")
    parser.add_argument("--out", type=Path, default=SAMPLE, help="folder to write")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    args = parser.parse_args()
    print(f"wrote {write_corpus(args.out, args.seed)} posts to {args.out}")


if __name__ == "__main__":
    main()
