"""The joint scripts as a user runs them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from psy_agents_noaug.cli import main


@pytest.fixture
def task_name() -> str:
    return "joint"


def figures(folder: Path, split: str) -> dict[str, object]:
    metrics = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key.startswith(f"{split}/")}


def test_the_script_trains_and_evaluating_val_gives_its_figures_to_the_last_bit(
    overrides: list[str], tmp_path: Path, start_script: Callable[..., Any], own_logging: None
) -> None:
    settings = ("run_name=one", "task.fusion=evidence_attention")
    trained = start_script("train_joint.py", *overrides, *settings).wait()
    assert trained.returncode == 0, trained.stderr
    assert "joint_score" in trained.stdout
    folder = tmp_path / "outputs" / "joint" / "one"
    recorded = figures(folder, "val")
    assert {"val/joint_score", "val/f1_macro", "val/evidence_iou_f1", "val/sufficiency"} <= set(
        recorded
    )
    header = (folder / "history.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/loss_criteria", "train/loss_evidence"} <= set(header)
    line = json.loads((folder / "predictions" / "val.jsonl").read_text().splitlines()[0])
    assert {"label", "probability", "decision", "evidence", "gold_evidence"} <= set(line)

    best = tmp_path / "outputs" / "checkpoints" / "best_checkpoint.pt"
    (folder / "metrics.json").unlink()
    assert main(["eval", "task=joint", f"checkpoint={best}", "split=val"]) == 0
    assert figures(folder, "val") == recorded
    assert main(["eval", "task=joint", f"checkpoint={best}"]) == 0
    assert figures(folder, "test")["test/n_pairs"] == 8 * 9


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("task.loss_weights={criteria: 0.0, evidence: 0.0}", "`task.loss_weights`"),
        ("task.loss_weights=learned", "`task.loss_weights` is 'learned'"),
        ("task.fusion=sum", "`task.fusion` is 'sum'"),
        ("task.evidence.stride=-1", "`task.evidence.stride` is -1"),
        ("model.criteria_encoder=somewhere", "`model.share_encoder` excludes"),
        ("data.unit=sentence", "`data.unit` must be post"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    overrides: list[str],
    own_logging: None,
    capfd: pytest.CaptureFixture[str],
    setting: str,
    told: str,
) -> None:
    assert main(["train", "task=joint", *overrides, setting]) == 2
    assert told in capfd.readouterr().err


def test_the_encoders_may_be_named_apart(
    overrides: list[str], tiny_encoder: Path, tmp_path: Path, own_logging: None
) -> None:
    argv = [
        *overrides,
        "model.share_encoder=false",
        f"model.evidence_encoder={tiny_encoder}",
        "model.pretrained_model=nowhere",
        f"model.criteria_encoder={tiny_encoder}",
        "training.max_steps=2",
        "run_name=two",
    ]
    assert main(["train", "task=joint", *argv]) == 0
    best = tmp_path / "outputs" / "checkpoints" / "best_checkpoint.pt"
    recorded = figures(tmp_path / "outputs" / "joint" / "two", "val")
    assert main(["eval", "task=joint", f"checkpoint={best}", "split=val"]) == 0
    assert figures(tmp_path / "outputs" / "joint" / "two", "val") == recorded


def test_a_paraphrased_corpus_trains_and_evaluates(
    overrides: list[str], paraphrased_corpus: Path, tmp_path: Path, own_logging: None
) -> None:
    own = [item for item in overrides if not item.startswith("data.")]
    argv = [*own, f"data.dir={paraphrased_corpus}", "training.epochs=1", "run_name=paraphrased"]
    assert main(["train", "task=joint", *argv]) == 0
    best = tmp_path / "outputs" / "checkpoints" / "best_checkpoint.pt"
    assert main(["eval", "task=joint", f"checkpoint={best}"]) == 0
    metrics = json.loads((tmp_path / "outputs/joint/paraphrased/metrics.json").read_text())
    assert metrics["val/n_pairs_with_unknown_evidence"] > 0
