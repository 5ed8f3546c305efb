"""What an adaptation to unlabelled posts gains: trainings that begin with and without it, seed by seed.

    python benchmarks/adaptation.py --seeds 1 2 3 4 5
    python benchmarks/adaptation.py --posts FILE --seeds 1 2 -- data=redsm5 data.dir=DIR

For each seed the encoder is adapted (`psy-agents adapt`) and the task criteria is trained from the
adapted encoder and from the encoder as it is; both are evaluated on the split. Without `--posts`, the
posts of the bundled corpus are read, of which those of val and test are left out. Settings after `--`
are those of adaptation and training alike.

Prints a row for each seed and the mean difference with its 95 % interval over seeds (Student's t), which
counts chance in training and not in posts.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from scipy import stats

from psy_agents_noaug import adapt, evaluate, train
from psy_agents_noaug.data import sample
from psy_agents_noaug.metrics.tables import render_table

FIGURES = ("f1_macro", "auroc_macro", "average_precision_macro")


def trained(settings: list[str], *, split: str) -> dict[str, Any]:
    """Train the task criteria and return its figures on a split."""
    result = train(settings, verbose=False)
    if split != "val":  # which a training reports itself
        result = evaluate(result, split=split, verbose=False)
    return {name: result.metrics[f"{split}/{name}"] for name in FIGURES}


def measured(seed: int, options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the figures of both encoders, and the perplexity of the adaptation."""
    common = [f"seed={seed}", "tracking=none", "report=false", *options.settings]
    adapted = adapt(
        options.posts,
        [*common, f"training.epochs={options.adapt_epochs}", f"output_dir={folder / 'adapted'}"],
        verbose=False,
    )
    training = [*common, f"training.epochs={options.epochs}"]
    encoders = {"as it is": [], "adapted": [f"model.pretrained_model={adapted.model}"]}
    figures = {
        name: trained(
            [*training, *own, f"output_dir={folder / f'{seed}-{len(own)}'}"], split=options.split
        )
        for name, own in encoders.items()
    }
    figures["adapted"]["perplexity"] = adapted.metrics["val/perplexity"]
    return figures


def difference_line(name: str, rows: list[dict[str, dict[str, Any]]]) -> str:
    """Say the mean difference of a figure over seeds, with its interval where there are several."""
    gains = [row["adapted"][name] - row["as it is"][name] for row in rows]
    mean = statistics.mean(gains)
    if len(gains) < 2:
        return f"{name}: {mean:+.3f} (one seed: no interval)"
    half = float(stats.t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    return f"{name}: {mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}] over {len(gains)} seeds"


def main() -> None:
    """Measure, and print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    bundled = Path(sample.__path__[0]) / "redsm5_posts.csv"
    parser.add_argument("--posts", type=Path, default=bundled)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--adapt-epochs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("settings", nargs="*")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            rows.append(measured(seed, options, Path(folder)))
            perplexity = rows[-1]["adapted"]["perplexity"]
            print(f"seed {seed}: perplexity of held-out posts {perplexity:.1f}", flush=True)
    table = [["seed", "encoder", *FIGURES]]
    for seed, row in zip(options.seeds, rows, strict=True):
        for encoder, figures in row.items():
            table.append([str(seed), encoder, *(f"{figures[name]:.3f}" for name in FIGURES)])
    print(f"\non {options.split}:\n{render_table(table, left=2)}\n\nadapted - as it is:")
    print("\n".join(difference_line(name, rows) for name in FIGURES))


if __name__ == "__main__":
    main()
