"""Thresholds fitted on val, judged on test: the highest F1 on val against the mean over samples of val.

    for seed in 1 2 3 4 5 6 7 8 9 10; do
      psy-agents train task=criteria training.epochs=2 seed=$seed run_name=s$seed
      psy-agents eval checkpoint=outputs/criteria/s$seed
    done
    python benchmarks/threshold_stability.py outputs/criteria/s*

Reads the prediction lines of evaluated trainings and prints macro-F1, in the mean over trainings, of two
rules: "best on val" takes the threshold with the highest F1 on val; "bootstrap" is the product's, the
highest mean F1 over samples of val's posts. "Other posts" is val's figure with the thresholds of other
posts of val (`val/cross_fitted/f1_macro`), which the product reports beside val's own.

Exits 1 if the product's rule loses on test by more than two standard errors over trainings, or if the
figure with other posts' thresholds is not nearer to test's than val's own is.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from psy_agents_noaug.metrics.calibration import group_folds
from psy_agents_noaug.metrics.classification import (
    PairPredictions,
    classification_metrics,
    fit_thresholds,
)
from psy_agents_noaug.metrics.tables import render_table

MIN_SUPPORT = 10
Mode = Literal["global", "per_criterion"]
MODES: tuple[Mode, ...] = ("global", "per_criterion")


def read(path: Path) -> PairPredictions:
    """Return the pairs of a file of prediction lines."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return PairPredictions(
        labels=np.array([line["label"] for line in lines]),
        probabilities=np.array([line["probability"] for line in lines]),
        criterion_ids=np.array([line["criterion_id"] for line in lines]),
        group_ids=np.array([line["group_id"] for line in lines]),
    )


def of_one_group(pairs: PairPredictions) -> PairPredictions:
    """Return the pairs as one group, whose bootstrap samples are all the whole."""
    return replace(pairs, group_ids=np.full(len(pairs.group_ids), "all"))


def f1(pairs: PairPredictions, criteria: list[str], thresholds: dict[str, float]) -> float:
    """Return macro-F1."""
    metrics = classification_metrics(pairs, criteria=criteria, thresholds=thresholds)
    value = metrics.values["f1_macro"]
    assert value is not None
    return float(value)


def cross_fitted(pairs: PairPredictions, criteria: list[str], mode: Mode) -> float:
    """Return macro-F1 with the thresholds of the posts of the other folds."""
    folds = group_folds(pairs.group_ids)
    assert folds is not None
    decided = np.zeros(len(folds))
    for fold in np.unique(folds):
        own = folds == fold
        found = fit_thresholds(
            pairs.take(~own), criteria=criteria, mode=mode, min_support=MIN_SUPPORT
        )
        cutoffs = np.array([found[name] for name in pairs.criterion_ids[own]])
        decided[own] = pairs.probabilities[own] >= cutoffs
    return f1(replace(pairs, probabilities=decided), criteria, dict.fromkeys(criteria, 0.5))


def main() -> int:
    """Print both rules for each kind of thresholds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, evaluated on test")
    runs = parser.parse_args().runs
    rows = [["thresholds", "rule", "val", "test", "val - test", "other posts", "- test", "gain"]]
    failed = False
    for mode in MODES:
        found = []
        for run in runs:
            val, test = (read(run / "predictions" / f"{name}.jsonl") for name in ("val", "test"))
            criteria = sorted(set(val.criterion_ids))
            row = []
            for pairs in (of_one_group(val), val):
                rule = fit_thresholds(pairs, criteria=criteria, mode=mode, min_support=MIN_SUPPORT)
                row += [f1(val, criteria, rule), f1(test, criteria, rule)]
            found.append([*row, cross_fitted(val, criteria, mode)])
        best_val, best_test, val_f1, test_f1, other = np.mean(found, axis=0)
        gains = np.array(found)[:, 3] - np.array(found)[:, 1]
        error = gains.std(ddof=1) / np.sqrt(len(gains))
        best = (best_val, best_test, best_val - best_test)
        own = (val_f1, test_f1, val_f1 - test_f1, other, other - test_f1)
        rows += [
            [mode, "best on val", *(f"{value:.3f}" for value in best), "", "", ""],
            [
                mode,
                "bootstrap",
                *(f"{value:.3f}" for value in own),
                f"{gains.mean():.4f} ± {error:.4f}",
            ],
        ]
        failed |= gains.mean() < -2 * error or abs(other - test_f1) >= best_val - best_test
    sys.stdout.write(f"{len(runs)} trainings\n{render_table(rows, left=2)}\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
