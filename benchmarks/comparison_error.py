"""How often equal systems are found different: simulated comparisons of two equal configurations.

    python benchmarks/comparison_error.py [--quick]

Two configurations are trained with 2, 3 or 5 seeds each, and their predictions on the same posts are
compared as `psy-agents compare` does (`metrics.comparison`): by each headline figure, and by the F1 of
nine criteria with Holm's adjustment. Both have the same expected figures; a seed makes the whole model
better or worse, shifts the scores of a criterion, and moves those of every post. One seed: two weights
that are equally good on other posts, which is what a comparison of single trainings is about. At 5 % at
most 6 % of such comparisons may be significant; of those by criterion, at most 6 % may have any
criterion that is.

The test of stage 3 of a search over posts alone, which takes the trained weights for the configuration,
is shown beside them. The last column is the coverage of one configuration's interval.

Exits 1 if a share of rejections is above 6 %, or a coverage is below 93 %. Of two seeds only macro-F1 is
held to that: `psy-agents compare` refuses them, and stage 3 of a search tests no other figure of labels.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from psy_agents_noaug.metrics.comparison import (
    MIN_TRAININGS,
    compare,
    difference_of,
    holm,
    mean_interval,
)
from psy_agents_noaug.metrics.lines import Line, line_samples
from psy_agents_noaug.metrics.tables import render_table

N_CRITERIA = 9
N_POSTS, PREVALENCE = 222, 12 / 222
# Standard deviations of the score's parts, in units of the noise that all trainings share.
SEED_OF_TRAINING, SEED_OF_CRITERION, SEED_OF_POST = 0.18, 0.3, 0.3
SEPARATION, CUT, THRESHOLD = 2.5, 2.0, 0.5
SEEDS = (1, 2, 3, 5)
HEADLINE = ("f1_macro", "auroc_macro", "average_precision_macro")
N_TRUTH = 200_000
MAX_REJECTED, MIN_COVERED = 0.06, 0.93


def trainings(
    rng: np.random.Generator, labels: np.ndarray, noise: np.ndarray, n_seeds: int
) -> list[list[dict[str, Any]]]:
    """Return the prediction lines of each training of one configuration."""
    names = [
        {
            "post_id": f"p{post:04d}",
            "criterion_id": f"A.{c + 1}",
            "example_id": f"p{post:04d}/A.{c + 1}",
        }
        for post in range(len(labels))
        for c in range(N_CRITERIA)
    ]
    found = []
    for _ in range(n_seeds):
        scores = score(rng, labels, noise, has_seeds=n_seeds > 1)
        found.append(
            [
                {
                    **name,
                    "label": label,
                    "probability": probability,
                    "threshold": THRESHOLD,
                    "decision": int(probability >= THRESHOLD),
                }
                for name, label, probability in zip(
                    names,
                    labels.ravel().tolist(),
                    expit(scores - CUT).ravel().tolist(),
                    strict=True,
                )
            ]
        )
    return found


def score(
    rng: np.random.Generator, labels: np.ndarray, noise: np.ndarray, *, has_seeds: bool = True
) -> np.ndarray:
    """Return the scores of one training, `[posts, criteria]`; met is what is above `CUT`."""
    separation = SEPARATION + has_seeds * SEED_OF_TRAINING * rng.normal()
    of_criterion = has_seeds * SEED_OF_CRITERION * rng.normal(size=(1, N_CRITERIA))
    of_post = SEED_OF_POST * rng.normal(size=labels.shape)
    scores: np.ndarray = separation * labels + noise + of_criterion + of_post
    return scores


def posts(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and what all trainings make of the posts, `[posts, criteria]` each."""
    labels = (rng.random((n, N_CRITERIA)) < PREVALENCE).astype(np.int64)
    return labels, rng.normal(size=labels.shape)


def true_macro_f1(rng: np.random.Generator) -> float:
    """Return the expected macro-F1 of a configuration, over seeds, on a large population."""
    labels, noise = posts(rng, N_TRUTH)
    values = []
    for _ in range(20):
        decisions = score(rng, labels, noise) >= CUT
        right = (labels * decisions).sum(axis=0)
        values.append(float((2 * right / (labels.sum(axis=0) + decisions.sum(axis=0))).mean()))
    return float(np.mean(values))


def significant(one: Sequence[Sequence[Line]], other: Sequence[Sequence[Line]]) -> dict[str, bool]:
    """Return whether two systems differ by each headline figure, and by any criterion ("criteria")."""
    samples = [[line_samples(lines) for lines in system] for system in (one, other)]

    def p_value(key: str) -> float | None:
        values = [np.stack([training[key] for training in system]) for system in samples]
        found = difference_of(*values)
        return None if found is None else found.p_value

    of_criteria = holm([p_value(f"per_criterion/A.{c + 1}/f1") for c in range(N_CRITERIA)])
    return {
        **{key: _is_significant(p_value(key)) for key in HEADLINE},
        "criteria": any(map(_is_significant, of_criteria)),
    }


def _is_significant(p: float | None) -> bool:
    return p is not None and p <= 0.05


def measure(n_seeds: int, *, n_comparisons: int, truth: float) -> dict[str, float]:
    """Return shares of rejections of all tests, and of intervals that hold the truth."""
    rng = np.random.default_rng(n_seeds)
    rejected: Counter[str] = Counter()
    by_posts, covered, n_intervals = 0, 0, 0
    for number in range(n_comparisons):
        labels, noise = posts(rng, N_POSTS)
        one, other = (trainings(rng, labels, noise, n_seeds) for _ in range(2))
        rejected += Counter(significant(one, other))
        found = compare("f1_macro", one, other, n_samples=199, seed=number)
        assert found is not None
        by_posts += found.p_value_of_these_weights <= 0.05
        interval = mean_interval("f1_macro", one) if n_seeds >= MIN_TRAININGS else None
        if interval is not None:
            n_intervals += 1
            covered += interval[0] <= truth <= interval[1]
    return {
        **{key: rejected[key] / n_comparisons for key in (*HEADLINE, "criteria")},
        "by_posts": by_posts / n_comparisons,
        "covered": covered / n_intervals if n_intervals else float("nan"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the shares for each number of seeds; the worst last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the comparisons")
    quick = parser.parse_args(argv).quick
    n_comparisons = 250 if quick else 1000
    truth = true_macro_f1(np.random.default_rng(0))
    heads = ["macro-F1", "AUROC", "AP", "any criterion", "macro-F1 by posts alone"]
    rows = [["seeds", *heads, "interval of the mean"]]
    outside, worst = [], (-1.0, "")
    for n_seeds in SEEDS:
        found = measure(n_seeds, n_comparisons=n_comparisons, truth=truth)
        # `psy-agents compare` refuses two seeds; stage 3 of a search compares macro-F1.
        tests = HEADLINE[:1] if n_seeds == 2 else (*HEADLINE, "criteria")
        shown = {key: f"{100 * value:.1f} %" for key, value in found.items()}
        rows.append(
            [str(n_seeds), *(cell if "nan" not in cell else "none" for cell in shown.values())]
        )
        for distance, line in (
            *(
                (found[key] - MAX_REJECTED, f"{n_seeds} seeds: {shown[key]} of {key}")
                for key in tests
            ),
            (MIN_COVERED - found["covered"], f"{n_seeds} seeds: {shown['covered']} covered"),
        ):
            worst = max(worst, (distance, line)) if distance == distance else worst
            # A quick run is judged with two standard errors of its own noise.
            slack = 2 * (0.05 * 0.95 / n_comparisons) ** 0.5 if quick else 0.0
            if distance > slack:
                outside.append(line)
    sys.stdout.write(f"{render_table(rows, left=1)}\n")
    sys.stdout.write("".join(f"outside its bounds: {line}\n" for line in outside))
    sys.stdout.write(f"worst: {worst[1]}\n")
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
