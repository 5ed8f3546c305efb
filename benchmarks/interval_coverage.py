"""How often a 95 % interval holds the truth: simulated splits of known populations.

    python benchmarks/interval_coverage.py [--quick]

A population has nine criteria, which a post tends to meet together, and a model with an AUROC of about
0.85 whose thresholds have the highest F1 in the population. Each sample is a split of the sizes that
users have: 57 posts with 12 met ones a criterion, 222 with 12, 222 with 4, 1000 with 54; and 30 authors
with ten posts each, whose posts resemble each other in labels and in errors. The truth is the figure of
a population of 400,000 posts. A sample with a criterion that a single post meets has no interval ("too
few"); of 222 posts with 4 met ones that is every second. The others have more met posts on average, and
so has the population.

Exits 1 if a coverage is outside its band: 93 to 97 % by posts, at least 90 % by authors.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from psy_agents_noaug.metrics.classification import PairPredictions
from psy_agents_noaug.metrics.intervals import classification_samples, macro
from psy_agents_noaug.metrics.jackknife import (
    effective_groups,
    intervals,
    jackknife_blocks,
    leave_blocks_out,
)
from psy_agents_noaug.metrics.multilabel import multilabel_samples, with_none_label
from psy_agents_noaug.metrics.posts import PostDecisions
from psy_agents_noaug.metrics.ratios import f1_score
from psy_agents_noaug.metrics.tables import render_table

Floats = NDArray[np.float64]

N_CRITERIA = 9
N_POPULATION = 400_000
BY_POSTS, BY_AUTHORS = (0.93, 0.97), (0.90, 1.0)
OF_PAIRS = ("f1_macro", "auroc_macro", "average_precision_macro")
OF_POSTS = ("f1_samples", "subset_accuracy")  # of a protocol, NO_SYMPTOMS among the labels
FIGURES = (*OF_PAIRS, "evidence_iou_f1", *OF_POSTS)
CRITERIA = [f"A.{k + 1}" for k in range(N_CRITERIA)]


@dataclass(frozen=True)
class Setting:
    """The size of a split.

    Args:
        n_posts: posts of a sample.
        n_met: met posts of each criterion, on average.
        posts_per_author: 1 for posts without authors.
        n_samples: samples to draw.
    """

    n_posts: int
    n_met: int
    posts_per_author: int
    n_samples: int

    @property
    def name(self) -> str:
        if self.posts_per_author > 1:
            return f"{self.n_posts // self.posts_per_author} authors x {self.posts_per_author}"
        return f"{self.n_posts} posts, {self.n_met} met"


@dataclass(frozen=True)
class Split:
    """A drawn split.

    Args:
        labels: `[posts, criteria]`.
        scores: log-odds of the model, `[posts, criteria]`.
        spans: per pair: spans predicted, predicted and right, gold, gold and found;
            `[posts, criteria, 4]`.
        authors: `[posts]`.
    """

    labels: NDArray[np.int64]
    scores: Floats
    spans: Floats
    authors: NDArray[np.int64]


def draw(rng: np.random.Generator, setting: Setting, n_posts: int, *, prevalence: float) -> Split:
    """Draw a split, or a population, of `n_posts` posts."""
    authors = np.arange(n_posts) // setting.posts_per_author
    n_authors = int(authors[-1]) + 1
    shape = (n_posts, N_CRITERIA)
    if setting.posts_per_author > 1:
        # Half of the variance of labels and of scores is the author's.
        severity = rng.normal(size=(n_authors, N_CRITERIA))[authors]
        style = rng.normal(size=(n_authors, N_CRITERIA))[authors]
        share = 0.5
    else:
        severity, style = rng.normal(size=(n_posts, 1)), rng.normal(size=(n_posts, 1))
        share = 0.3
    ill = np.sqrt(share) * severity + np.sqrt(1 - share) * rng.normal(size=shape)
    labels = (ill < norm.ppf(prevalence)).astype(np.int64)
    noise = np.sqrt(share) * style + np.sqrt(1 - share) * rng.normal(size=shape)
    scores = 1.5 * labels + noise
    gold = labels * rng.integers(1, 3, size=shape)
    # A met pair finds each gold span with a chance that its score moves; spans elsewhere are wrong.
    found = rng.binomial(gold, 1 / (1 + np.exp(-noise)))
    wrong = rng.poisson(np.where(labels, 0.5, 0.06) * np.exp(0.5 * noise))
    spans = np.stack([found + wrong, found, gold, found], axis=2).astype(np.float64)
    return Split(labels, scores, spans, authors)


def figures(split: Split, cutoffs: Floats, *, whole_only: bool) -> dict[str, Floats]:
    """Return each figure of the split and of its jackknife samples; of the split alone if asked."""
    authors = np.zeros_like(split.authors) if whole_only else split.authors
    groups = authors.astype(str)
    pairs = PairPredictions(
        labels=split.labels.ravel(),
        probabilities=1 / (1 + np.exp(-split.scores.ravel())),
        criterion_ids=np.tile(CRITERIA, len(groups)),
        group_ids=np.repeat(groups, N_CRITERIA),
    )
    thresholds = dict(zip(CRITERIA, 1 / (1 + np.exp(-cutoffs)), strict=True))
    samples = classification_samples(pairs, criteria=CRITERIA, thresholds=thresholds).values
    blocks, n_blocks = jackknife_blocks(groups)
    counts = np.zeros((n_blocks, N_CRITERIA, 4))
    np.add.at(counts, blocks, split.spans)
    predicted, right, gold, found = np.moveaxis(leave_blocks_out(counts.transpose(1, 0, 2)), -1, 0)
    iou = macro(f1_score(right, predicted, gold, found=found))
    decided = (split.scores >= cutoffs).astype(np.int64)
    posts = multilabel_samples(with_none_label(PostDecisions(split.labels, decided, groups))).values
    return {
        **{key: samples[key] for key in OF_PAIRS},
        "evidence_iou_f1": iou,
        **{key: posts[key] for key in OF_POSTS},
    }


def best_cutoffs(population: Split) -> Floats:
    """Return the cut-off of each criterion with the highest F1."""
    cutoffs = np.linspace(-1, 5, 61)
    f1 = [
        f1_score(
            (population.labels * (population.scores >= cutoff)).sum(axis=0),
            (population.scores >= cutoff).sum(axis=0),
            population.labels.sum(axis=0),
        )
        for cutoff in cutoffs
    ]
    best: Floats = cutoffs[np.argmax(f1, axis=0)]
    return best


def coverage(setting: Setting, *, seed: int) -> Iterator[tuple[str, int, int, float]]:
    """Yield each figure with the number of intervals, how many hold the truth, and their mean width."""
    rng = np.random.default_rng(seed)
    prevalence = setting.n_met / setting.n_posts
    splits = [
        draw(rng, setting, setting.n_posts, prevalence=prevalence) for _ in range(setting.n_samples)
    ]
    splits = [split for split in splits if (split.labels.sum(axis=0) > 1).all()]
    judged = float(np.mean([split.labels.mean() for split in splits]))
    population = draw(rng, setting, N_POPULATION, prevalence=judged)
    cutoffs = best_cutoffs(population)
    truth = figures(population, cutoffs, whole_only=True)
    found: dict[str, list[tuple[float, float]]] = {key: [] for key in FIGURES}
    for split in splits:
        samples = figures(split, cutoffs, whole_only=False)
        n_groups = effective_groups(split.authors)
        ratios = {key: n_groups for key in FIGURES if "f1" in key or key in OF_POSTS}
        values = intervals(samples, ratios=ratios).values
        for key, own in found.items():
            low, high = values[f"{key}_ci_low"], values[f"{key}_ci_high"]
            if low is not None and high is not None:
                own.append((low, high))
    for key, own in found.items():
        held = sum(low <= truth[key][0] <= high for low, high in own)
        width = float(np.mean([high - low for low, high in own])) if own else float("nan")
        yield key, len(own), held, width


def main() -> int:
    """Print the coverage of each figure and size; the worst last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the samples")
    quick = parser.parse_args().quick
    settings = [
        Setting(57, 12, 1, 2000),
        Setting(222, 12, 1, 2000),
        Setting(222, 4, 1, 4000),
        Setting(1000, 54, 1, 1200),
        Setting(300, 45, 10, 2000),
    ]
    rows = [["split", "figure", "coverage", "band", "width", "intervals"]]
    outside: list[tuple[float, str]] = []
    worst = (-1.0, "")
    for number, setting in enumerate(settings):
        size = setting.n_samples // 4 if quick else setting.n_samples
        own = Setting(setting.n_posts, setting.n_met, setting.posts_per_author, size)
        low, high = BY_AUTHORS if setting.posts_per_author > 1 else BY_POSTS
        for key, n, held, width in coverage(own, seed=number):
            share = held / n
            # A quick run is judged with two standard errors of its own noise.
            slack = 2 * np.sqrt(share * (1 - share) / n) if quick else 0.0
            distance = max(low - share, share - high)
            line = f"{setting.name}, {key}: {100 * share:.1f} %"
            worst = max(worst, (distance, line))
            if distance > slack:
                outside.append((distance, line))
            band = f"{100 * low:.0f}-{100 * high:.0f} %"
            shown = f"{n} of {size}"
            rows.append([setting.name, key, f"{100 * share:.1f} %", band, f"{width:.3f}", shown])
    sys.stdout.write(f"{render_table(rows, left=2)}\n")
    sys.stdout.write("".join(f"outside its band: {line}\n" for _, line in sorted(outside)))
    sys.stdout.write(f"worst: {worst[1]}\n")
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
