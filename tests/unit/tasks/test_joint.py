import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from psy_agents_noaug.data.alignment import Span
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.models.encoder import load_encoder
from psy_agents_noaug.tasks.base import ENCODER, SplitPredictions, TaskInputs
from psy_agents_noaug.tasks.build import build_task
from psy_agents_noaug.tasks.joint.task import CRITERIA, EVIDENCE

CRITERIA_USED = MAJOR_DEPRESSIVE_EPISODE[:2]
SECRET = "xylozephyrquill"


def make_example(post: int, criterion: int, *, met: bool, known: bool = True) -> Example:
    criterion_id = CRITERIA_USED[criterion].criterion_id
    text = f"The bus was late. {SECRET} {post}. I bought a lamp. My exam is on Friday."
    at = text.find("I bought a lamp.")
    return Example(
        example_id=f"p{post}/{criterion_id}",
        post_id=f"p{post}",
        group_id=f"p{post}",
        criterion_id=criterion_id,
        text=text,
        label=int(met),
        annotated=met,
        evidence=(Span(at, at + 16),) if met and known else (),
        hard_negative_spans=(),
    )


TRAIN = [
    make_example(post, criterion, met=(post + criterion) % 3 == 0)
    for post in range(6)
    for criterion in range(2)
]
VAL = [
    make_example(post, criterion, met=(post + criterion) % 2 == 0)
    for post in range(10, 16)
    for criterion in range(2)
]
UNKNOWN = [make_example(20, 0, met=True, known=False), *VAL]


@pytest.fixture
def task_name() -> str:
    return "joint"


@pytest.fixture
def make_task(make_config, tiny_encoder):
    """Return a function from overrides to a task, its encoders shared or not."""

    def make(*overrides, shared=False, train=TRAIN, val=VAL, encoders=None):
        config = make_config(
            "model.head_dropout=0.0",
            "model.encoder_dropout=0.0",
            "data.negatives=all",
            f"model.share_encoder={str(shared).lower()}",
            *overrides,
        )
        torch.manual_seed(5)
        parts = (ENCODER,) if shared else (CRITERIA, EVIDENCE)
        encoders = encoders or {
            part: load_encoder(str(tiny_encoder), dropout=0.0) for part in parts
        }
        examples = {"train": train, "val": val}
        return build_task(config, TaskInputs(encoders, CRITERIA_USED, examples, max_tokens=4096))

    return make


@pytest.fixture
def make_single(overrides_for, tmp_path, tiny_encoder):
    """Return a function from a task's name to it, on the same examples."""
    from psy_agents_noaug.config.loading import load_train_config

    def make(name: str):
        fixed = ["model.head_dropout=0.0", "model.encoder_dropout=0.0", "data.negatives=all"]
        fixed.append("model.pooling=mean")
        own = overrides_for(tmp_path / name, name)
        config = load_train_config(name, [*own, *fixed])
        torch.manual_seed(6)
        encoders = {ENCODER: load_encoder(str(tiny_encoder), dropout=0.0)}
        examples = {"train": TRAIN, "val": VAL}
        return build_task(config, TaskInputs(encoders, CRITERIA_USED, examples, max_tokens=4096))

    return make


def updates(task, *, steps: int = 5) -> list[torch.Tensor]:
    """Weights after a few updates, each over all training examples in one batch."""
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3, eps=1e-4)
    batch = task.source("train").collate(range(len(task.source("train").ids)))
    task.model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        (task.loss(task.model, batch).sum() / len(TRAIN)).backward()
        optimizer.step()
    return [p.detach() for p in task.model.parameters()]


@pytest.mark.parametrize(
    ("weights", "single", "names"),
    [
        (
            "{criteria: 1.0, evidence: 0.0}",
            "criteria",
            {"criteria_encoder.": "encoder.", "pooling.": "pooling.", "head.": "head."},
        ),
        ("{criteria: 0.0, evidence: 1.0}", "evidence", {"evidence.": ""}),
    ],
)
def test_with_one_weight_the_updates_are_those_of_the_single_task(
    make_task, make_single, weights, single, names
):
    joint = make_task(f"task.loss_weights={weights}", "model.pooling=mean")
    alone = make_single(single)
    own = {
        new + name.removeprefix(old): value
        for name, value in joint.model.state_dict().items()
        for old, new in names.items()
        if name.startswith(old)
    }
    assert set(own) == set(alone.model.state_dict())
    alone.model.load_state_dict(own)
    before = {name: value.clone() for name, value in alone.model.state_dict().items()}
    updates(joint)
    updates(alone)
    moved = 0.0
    for name, value in alone.model.state_dict().items():
        old = next(o for o, n in names.items() if name.startswith(n))
        twin = joint.model.state_dict()[old + name.removeprefix(names[old])]
        torch.testing.assert_close(value, twin, atol=1e-6, rtol=1e-4)
        moved += float((value - before[name]).norm())
    assert moved > 0.1


def test_the_loss_has_a_part_for_the_label_and_one_for_the_evidence(make_task):
    task = make_task("task.loss_weights={criteria: 0.5, evidence: 2.0}")
    batch = task.source("train").collate([0, 1, 2])
    weighted = task.loss(task.model, batch)
    plain = make_task().loss(task.model, batch)
    assert weighted.shape == (3, 2)
    torch.testing.assert_close(weighted, plain * torch.tensor([0.5, 2.0]))


def test_learned_weights_follow_kendall_gal_and_cipolla(make_task):
    task = make_task("task.loss_weights=uncertainty")
    batch = task.source("train").collate([0, 1, 2])
    plain = task.loss(task.model, batch).detach()
    with torch.no_grad():
        task.model.log_variances.copy_(torch.tensor([0.4, -1.0]))
    expected = plain * torch.exp(torch.tensor([-0.4, 1.0])) + torch.tensor([0.2, -0.5])
    torch.testing.assert_close(task.loss(task.model, batch).detach(), expected)


def everything(task, source=None) -> dict[str, np.ndarray]:
    source = source or task.source("val")
    with torch.inference_mode():
        found = task.predict(task.model.eval(), source.collate(range(len(source.ids))))
    return {name: value.numpy() for name, value in found.items()}


class Recorder:
    """Predicts what it is asked for, and remembers it."""

    def __init__(self, task) -> None:
        self.task, self.sources, self.found = task, [], []

    def __call__(self, source) -> dict[str, np.ndarray]:
        self.sources.append(source)
        self.found.append(everything(self.task, source))
        return self.found[-1]


def test_a_met_pair_with_unknown_evidence_trains_and_evaluates_the_label_alone(make_task):
    task = make_task(train=UNKNOWN, val=UNKNOWN)
    batch = task.source("train").collate([0, 1])
    losses = task.loss(task.model, batch)
    assert losses[0, 1] == 0.0
    assert losses[0, 0] > 0.0
    found = everything(task)
    rule = task.evaluation.fit_decision_rule(found)
    report = task.evaluation.report(SplitPredictions("val", found, rule))
    assert report["n_pairs"] == len(UNKNOWN)
    assert report["evidence_n_pairs"] == len(VAL)
    assert report["n_pairs_with_unknown_evidence"] == 1
    lines = list(task.evaluation.records(SplitPredictions("val", found, rule)))
    assert [line["example_id"] for line in lines] == [e.example_id for e in UNKNOWN]
    assert lines[0]["gold_evidence"] is None
    assert lines[1]["gold_evidence"] != []


def test_one_shared_encoder_tokenises_once(make_task):
    shared, separate = make_task(shared=True), make_task()
    assert not [key for key in shared.source("train").collate([0]) if key.startswith("criteria/")]
    assert [key for key in separate.source("train").collate([0]) if key.startswith("criteria/")]
    assert (separate.source("train").lengths == 2 * shared.source("train").lengths).all()
    # Predictions hold the tokens of one encoder at a time.
    sizes = [task.source("train").sizes for task in (separate, shared)]
    assert all((one == other).all() for one, other in zip(*sizes, strict=True))


def test_encoders_with_different_tokenizers_work_together(
    make_task, tiny_encoder, byte_level_tokenizer
):
    wordpiece, other = (load_encoder(str(tiny_encoder), dropout=0.0) for _ in range(2))
    other.model.resize_token_embeddings(len(byte_level_tokenizer))
    bpe = replace(other, tokenizer=byte_level_tokenizer)
    for pair in ({CRITERIA: wordpiece, EVIDENCE: bpe}, {CRITERIA: bpe, EVIDENCE: wordpiece}):
        task = make_task("model.max_length=100", "task.fusion=evidence_attention", encoders=pair)
        source = task.source("train")
        batch = source.collate(range(len(source.ids)))
        assert torch.isfinite(task.loss(task.model, batch)).all()
        example = source.examples[0]
        own = batch["pairs"] == 0
        first, last = (batch["gold"][own][:, :, side].nonzero()[0, 1] for side in (0, 1))
        offsets = batch["offset_mapping"][own][0]
        assert example.text[offsets[first, 0] : offsets[last, 1]] == "I bought a lamp."


def test_consistent_decoding_has_evidence_if_and_only_if_the_label_is_met(make_task):
    found = everything(make_task())
    order = np.arange(len(VAL))
    found["probabilities"] = np.where(order % 2 == 0, 0.9, 0.1)
    found["span_scores"] -= found["span_scores"][:, :1] + np.where(order % 3 == 0, 1, -1)[:, None]
    thresholds = dict.fromkeys((c.criterion_id for c in CRITERIA_USED), 0.5)
    rule = {"thresholds": thresholds, "null_score_diff_threshold": 0.0}
    shares = {}
    for decoding in ("independent", "consistent"):
        task = make_task(f"task.decoding={decoding}")
        report = task.evaluation.metrics(SplitPredictions("val", found, rule))
        shares[decoding] = (
            report["positive_without_evidence"],
            report["evidence_without_positive"],
        )
        lines = list(task.evaluation.records(SplitPredictions("val", found, rule)))
        scored = [span["score"] for line in lines for span in line["evidence"]]
        assert set(scored) <= set(found["span_scores"].ravel().tolist())
        agree = [bool(line["evidence"]) == bool(line["decision"]) for line in lines]
        assert all(agree) == (decoding == "consistent")
    assert max(shares["independent"]) > 0.0
    assert shares["consistent"] == (0.0, 0.0)


def test_faithfulness_reads_the_post_without_the_spans_and_the_spans_alone(make_task):
    task = make_task()
    found = everything(task)
    rule = {
        "thresholds": dict.fromkeys((c.criterion_id for c in CRITERIA_USED), 0.0),
        "null_score_diff_threshold": 1e9,
    }
    predict = Recorder(task)
    figures = task.input_metrics(SplitPredictions("val", found, rule), predict)
    without, alone, without_random, random_alone = predict.sources
    for index, example in enumerate(VAL):
        kept = list(zip(found["span_starts"][index], found["span_ends"][index], strict=True))
        spans = sorted((int(a), int(b)) for a, b in kept if a >= 0)
        texts = [source.examples[index].text for source in (without, alone)]
        assert texts[1] == " ".join(example.text[a:b] for a, b in spans)
        assert sorted("".join(texts).replace(" ", "")) == sorted(example.text.replace(" ", ""))
        drawn = [source.examples[index].text for source in (without_random, random_alone)]
        # Random spans may overlap, never be longer than the predicted ones.
        assert 0 < len(drawn[1].split()) <= len(texts[1].split())
        assert sorted(" ".join(drawn).split()) == sorted(example.text.split())
    full, rest = found["probabilities"], predict.found[0]["probabilities"]
    assert figures["comprehensiveness"] == pytest.approx(float((full - rest).mean()), abs=1e-6)
    assert figures["n_faithfulness"] == len(VAL)
    by_chance = predict.found[2]["probabilities"]
    assert figures["comprehensiveness_gain"] == pytest.approx(
        float((by_chance - rest).mean()), abs=1e-6
    )


def test_without_a_positive_decision_faithfulness_is_undefined(make_task):
    task = make_task()
    rule = {
        "thresholds": dict.fromkeys((c.criterion_id for c in CRITERIA_USED), 2.0),
        "null_score_diff_threshold": 0.0,
    }
    predict = Recorder(task)
    figures = task.input_metrics(SplitPredictions("val", everything(task), rule), predict)
    assert predict.sources == []
    assert figures["comprehensiveness"] is None
    assert figures["sufficiency_undefined"]


def test_no_figure_of_one_task_hides_one_of_the_other(make_task):
    task = make_task()
    found = everything(task)
    rule = task.evaluation.fit_decision_rule(found)
    predicted = SplitPredictions("val", found, rule)
    parts = task.evaluation._labels, task.evaluation._evidence
    reports = [part.report(predicted) for part in parts]
    assert not set(reports[0]) & set(reports[1])


def test_a_report_has_both_tasks_figures_and_the_joint_ones(make_task):
    task = make_task(shared=True)
    found = everything(task)
    rule = task.evaluation.fit_decision_rule(found)
    predicted = SplitPredictions("val", found, rule)
    report = task.evaluation.report(predicted)
    report |= task.input_metrics(predicted, Recorder(task))
    assert report["joint_score"] == pytest.approx(
        (report["f1_macro"] + report["evidence_iou_f1"]) / 2
    )
    assert {"f1_macro_ci_low", "evidence_iou_f1_ci_low", "supported_f1_ci_low"} <= set(report)
    assert {"baseline_tfidf_lr/f1_macro", "baseline_whole_post/evidence_iou_f1"} <= set(report)
    assert set(task.evaluation.monitors()) <= set(
        task.evaluation.metrics(SplitPredictions("val", found, rule))
    )
    assert task.evaluation.monitors()["joint_score"] == "max"
    assert task.evaluation.monitors()["positive_without_evidence"] == "min"
    assert "joint_score" in task.evaluation.summary(report)
    assert SECRET not in json.dumps(report) + task.evaluation.summary(report)
