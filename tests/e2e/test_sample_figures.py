"""Figures of the bundled corpus that hang on no trained weights: what is judged, and the baselines."""

from pathlib import Path
from typing import Any

import pytest

from psy_agents_noaug import evaluate, train

pytestmark = pytest.mark.slow


def figures(encoder: Path, output_dir: Path, task: str, *more: str) -> dict[str, Any]:
    """The metrics on test after one update of a tiny encoder."""
    settings = [
        f"model.pretrained_model={encoder}",
        "model.max_length=96",
        "training.max_steps=1",
        "tracking=none",
        f"output_dir={output_dir}",
    ]
    return evaluate(train([*settings, *more], task=task, verbose=False), verbose=False).metrics


@pytest.mark.parametrize(
    ("more", "n_sentences", "prevalence", "always_met"),
    [
        ("data.sentences=all", 425, 0.028, 0.055),
        ("data.sentences=annotated", 156, 0.075, 0.140),
    ],
)
def test_the_prevalence_is_that_of_the_sentences_that_are_judged(
    tiny_encoder: Path,
    tmp_path: Path,
    more: str,
    n_sentences: int,
    prevalence: float,
    always_met: float,
) -> None:
    found = figures(tiny_encoder, tmp_path, "criteria", more)
    assert found["test/n_pairs"] == 9 * n_sentences
    assert found["test/n_positive"] / found["test/n_pairs"] == pytest.approx(prevalence, abs=5e-4)
    assert found["test/baseline_always_met/f1_macro"] == pytest.approx(always_met, abs=5e-4)
    if more == "data.sentences=all":
        assert found["test/baseline_tfidf_lr/f1_macro"] == pytest.approx(0.239, abs=0.005)


def test_whole_posts_and_evidence_have_the_baselines_that_the_readme_shows(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    found = figures(tiny_encoder, tmp_path, "joint", "task.evidence.stride=8")
    assert found["test/baseline_always_met/f1_macro"] == pytest.approx(0.214, abs=5e-4)
    assert found["test/baseline_tfidf_lr/f1_macro"] == pytest.approx(0.268, abs=0.005)
    sentences = found["test/baseline_tfidf_lr/evidence_iou_f1"]
    assert sentences == pytest.approx(0.220, abs=0.005)
