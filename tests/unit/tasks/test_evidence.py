import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from psy_agents_noaug.data.alignment import Span
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.models.encoder import load_encoder
from psy_agents_noaug.models.evidence import NULL_POSITION, log_odds
from psy_agents_noaug.models.execution import enable_packing
from psy_agents_noaug.models.losses import span_loss
from psy_agents_noaug.tasks.base import ENCODER, RowSource, SplitPredictions, TaskInputs
from psy_agents_noaug.tasks.evidence.task import EvidenceTask
from psy_agents_noaug.training.distributed import DistributedContext
from psy_agents_noaug.training.evaluator import Evaluator
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.training.precision import Precision

CRITERIA = MAJOR_DEPRESSIVE_EPISODE[:2]
SECRET = "xylozephyrquill"
FILLER = "The bus was late again this morning. "


def make_example(
    post: int,
    criterion: int,
    *,
    evidence: str = "",
    hard: str = "",
    label: int | None = None,
    repeat=1,
) -> Example:
    criterion_id = CRITERIA[criterion].criterion_id
    text = f"{FILLER * repeat}{SECRET} {post} sad. I bought a lamp. {FILLER}"

    def spans(words: str) -> tuple[Span, ...]:
        at = text.find(words)
        return (Span(at, at + len(words)),) if words else ()

    return Example(
        example_id=f"p{post}/{criterion_id}",
        post_id=f"p{post}",
        group_id=f"p{post}",
        criterion_id=criterion_id,
        text=text,
        label=bool(evidence) if label is None else label,
        annotated=bool(evidence or hard),
        evidence=spans(evidence),
        hard_negative_spans=spans(hard),
    )


TRAIN = [
    make_example(1, 0, evidence="I bought a lamp."),
    make_example(1, 1),
    make_example(2, 0, hard="I bought a lamp."),
    make_example(2, 1, label=1),
    make_example(3, 0, evidence="The bus was late", repeat=6),
    make_example(3, 1),
]
VAL = [replace(example, post_id=f"v{example.post_id}") for example in TRAIN]


@pytest.fixture
def make_task(make_config, tiny_encoder):
    """Return a function from overrides to a task on examples."""

    def make(*overrides, train=TRAIN, val=VAL, max_tokens=4096):
        config = make_config("model.head_dropout=0.0", "model.encoder_dropout=0.0", *overrides)
        torch.manual_seed(5)
        encoders = {ENCODER: load_encoder(str(tiny_encoder), dropout=0.0)}
        examples = {"train": train, "val": val}
        return EvidenceTask(config, TaskInputs(encoders, CRITERIA, examples, max_tokens))

    return make


@pytest.fixture
def task_name() -> str:
    return "evidence"


def shown(task, index: int, name: str) -> list[str]:
    """The texts of the tokens that `gold` marks in the windows of an example."""
    source = task.source("train")
    batch = source.collate([index])
    column = ("starts", "ends").index(name)
    found = batch["gold"][:, :, column].nonzero().tolist()
    text = source.examples[index].text
    return [
        "null" if at == NULL_POSITION else text[slice(*batch["offset_mapping"][row, at].tolist())]
        for row, at in found
    ]


def test_gold_borders_are_the_first_and_last_token_or_the_null_position(make_task):
    task = make_task()
    assert shown(task, 0, "starts") == ["I"]
    assert shown(task, 0, "ends") == ["."]
    assert set(shown(task, 1, "starts")) == set(shown(task, 1, "ends")) == {"null"}


def test_a_span_on_a_status_0_row_is_a_hard_negative_and_always_trained_on(make_task):
    task = make_task("data.negatives=0.01")
    assert set(shown(task, 2, "starts")) == {"null"}
    assert 2 in task.epoch_pool(0)


def test_met_pairs_whose_evidence_is_unknown_are_left_out_and_counted(make_task):
    task = make_task()
    assert task.source("train").ids == [e.example_id for e in TRAIN if e is not TRAIN[3]]
    assert "1 met pairs have unknown evidence" in task.input_summary("train")[0]
    with pytest.raises(DataError, match="no pair whose evidence is known"):
        make_task(train=[TRAIN[3]]).source("train")


def test_the_loss_of_an_example_is_the_mean_over_its_windows(make_task):
    task = make_task("model.max_length=32")
    source = task.source("train")
    index = len(source.ids) - 1
    batch = source.collate([index])
    n_windows = len(batch["input_ids"])
    assert n_windows > 2
    logits = task.model(
        **{k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids", "context_mask")}
    )
    null = -logits.log_softmax(dim=1)[:, NULL_POSITION].mean(dim=-1)
    torch.testing.assert_close(task.loss(task.model, batch)[0], null.mean())


def test_windows_with_a_part_of_the_evidence_alone_say_nothing(make_task):
    task = make_task("model.max_length=32")
    source = task.source("train")
    cut = source.windows.cut
    assert cut.any()
    batch = source.collate(range(len(source.ids)))
    assert (batch["weights"].numpy()[cut] == 0).all()
    sums = torch.zeros(len(source.ids)).index_add(0, batch["pairs"], batch["weights"])
    torch.testing.assert_close(sums, torch.ones(len(source.ids)))


def test_evidence_that_no_window_holds_is_named_with_the_setting_that_reaches_it(make_task):
    whole = make_example(7, 0, repeat=4)
    whole = replace(whole, label=1, evidence=(Span(0, len(whole.text.rstrip())),))
    task = make_task("model.max_length=32", train=[*TRAIN, whole])
    source = task.source("train")
    lost = source.ids.index("p7/A.1")
    assert lost not in task.epoch_pool(0)
    told = "\n".join(task.input_summary("train"))
    assert "1 gold spans of train fit into no window" in told
    assert "p7/A.1" in told
    stride, length = (
        int(told.split(f"{key}=")[1].split()[0].rstrip(".")) for key in ("stride", "max_length")
    )
    enough = make_task(f"model.max_length={length}", f"task.stride={stride}", train=[*TRAIN, whole])
    assert not enough.source("train").windows.unreachable
    assert lost in enough.epoch_pool(0)


def test_evidence_longer_than_an_answer_may_be_is_told(make_task):
    assert "it cannot be predicted" in "\n".join(
        make_task("task.max_answer_length=2").input_summary("train")
    )
    assert "it cannot be predicted" not in "\n".join(make_task().input_summary("train"))


def test_a_loss_over_all_gold_spans_is_the_summed_likelihood_and_first_span_the_firsts(make_task):
    both = replace(TRAIN[0], evidence=(*TRAIN[0].evidence, Span(0, 7)), example_id="both/A.1")
    both = replace(both, evidence=tuple(sorted(both.evidence)))
    task = make_task(train=[both], val=VAL)
    batch = task.source("train").collate([0])
    logits = task.model(
        **{k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids", "context_mask")}
    )[0]
    p = logits.softmax(dim=0)
    starts, ends = (batch["gold"][0, :, side].nonzero()[:, 0].tolist() for side in (0, 1))
    assert len(starts) == len(ends) == 2
    marginal = -(p[starts, 0].sum().log() + p[ends, 1].sum().log()) / 2
    torch.testing.assert_close(task.loss(task.model, batch)[0], marginal)
    first = make_task("task.loss=first_span", train=[both], val=VAL)
    alone = -(p[starts[0], 0].log() + p[ends[0], 1].log()) / 2
    torch.testing.assert_close(first.loss(task.model, first.source("train").collate([0]))[0], alone)


def test_span_loss_is_finite_in_value_and_gradient_with_masked_tokens():
    logits = torch.tensor([[[1.0, 2.0], [0.5, 0.1], [-math.inf, -math.inf]]], requires_grad=True)
    gold = torch.tensor([[[False, False], [True, True], [False, False]]])
    loss = span_loss(logits, gold)
    loss.sum().backward()
    expected = [math.log(1 + math.exp(0.5)), math.log(1 + math.exp(1.9))]
    assert float(loss.detach()) == pytest.approx(sum(expected) / 2)
    assert torch.isfinite(logits.grad).all()


def test_log_odds_are_relative_to_the_null_position_which_is_no_span():
    logits = torch.tensor([[[1.0, 2.0], [4.0, 3.0]]])
    assert log_odds(logits).tolist() == [[[-math.inf, -math.inf], [3.0, 1.0]]]


def test_criterion_special_tokens_and_padding_can_not_be_evidence(make_task):
    task = make_task()
    batch = task.source("train").collate([0, 4])
    logits = task.model(
        **{k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids", "context_mask")}
    )
    inside = (batch["token_type_ids"] == 1) & (batch["offset_mapping"][:, :, 0] >= 0)
    inside[:, NULL_POSITION] = True
    assert torch.equal(torch.isfinite(logits).all(dim=-1), inside)


@pytest.mark.parametrize("max_tokens", [70, 40])
def test_windows_in_turns_give_the_loss_and_gradients_of_all_at_once(make_task, max_tokens):
    gradients = []
    for held in (100_000, max_tokens):
        task = make_task("model.max_length=32", max_tokens=held)
        batch = task.source("train").collate([0, 4])
        assert batch["input_ids"].numel() > 100
        loss = task.loss(task.model, batch)
        loss.sum().backward()
        gradients.append([loss.detach(), *(p.grad for p in task.model.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def batches_and_passes(task, monkeypatch, *, budget: int, most: int | None = None):
    """Predict val. Return the tokens of each encoder pass, the masks of the batches, the predictions.

    Args:
        task: a task on VAL.
        monkeypatch: pytest's.
        budget: tokens of a batch.
        most: memory runs out in a pass of more tokens.
    """
    passes, batches = [], []

    def counted(module, arguments, inputs):
        passes.append(inputs["input_ids"].numel())
        if most is not None and passes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = task.encoder_modules[0].register_forward_pre_hook(counted, with_kwargs=True)
    original = task.predict

    def watched(model, batch):
        batches.append(batch["attention_mask"])
        return original(model, batch)

    monkeypatch.setattr(task, "predict", watched)
    cpu = torch.device("cpu")
    precision = Precision("off", device=cpu, supports_bf16=False, supports_fp16=False)
    hardware = Hardware(DistributedContext(device=cpu), precision, {"num_workers": 0}, budget)
    evaluator = Evaluator(task, hardware, eval_batch_size=64)
    found = evaluator.predict(task.model, task.source("val"))
    hook.remove()
    monkeypatch.setattr(task, "predict", original)
    return passes, batches, found


@pytest.mark.parametrize("packed", [False, True])
def test_the_encoder_takes_every_batch_of_an_evaluation_in_one_pass(make_task, monkeypatch, packed):
    task = make_task("model.max_length=32", max_tokens=40)
    if packed:
        enable_packing(task.encoder_modules[0])
        task.packs = True
    passes, batches, _ = batches_and_passes(task, monkeypatch, budget=10**6)
    assert len(batches) == len(passes) == 1
    sizes = task.source("val").sizes
    budget = int((sizes.rows * sizes.longest).max())
    passes, batches, _ = batches_and_passes(task, monkeypatch, budget=budget)
    assert len(batches) == len(passes) > 1
    assert passes == [int(mask.sum()) if packed else mask.numel() for mask in batches]
    assert max(passes) <= budget


@pytest.mark.faults(
    "out of memory in the prediction of one long post",
    "its windows go through the encoder in smaller turns; the predictions are the same",
)
def test_a_long_post_that_does_not_fit_into_memory_is_predicted_in_turns(make_task, monkeypatch):
    task = make_task("model.max_length=32")
    _, _, expected = batches_and_passes(task, monkeypatch, budget=10**6)
    longest = task.source("val").sizes.longest.max()
    assert task.source("val").sizes.tokens.max() > 3 * longest
    passes, _, found = batches_and_passes(task, monkeypatch, budget=4096, most=2 * longest)
    assert passes[0] > 2 * longest >= passes[-1]
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5)


def test_sizes_are_those_of_what_is_collated(make_task):
    source = make_task("model.max_length=32").source("train")
    assert isinstance(source, RowSource)
    for index in range(len(source.ids)):
        mask = source.collate([index])["attention_mask"]
        collated = (*mask.shape, int(mask.sum()))
        assert tuple(int(values[index]) for values in source.sizes) == collated
    assert source.sizes.rows.max() > 3


def test_predictions_lie_in_the_post_and_snap_to_sentences_if_asked_to(make_task):
    for snap in ("false", "true"):
        task = make_task(f"task.snap_to_sentences={snap}", "model.max_length=32")
        source = task.source("val")
        found = task.predict(task.model.eval(), source.collate(range(len(source.ids))))
        assert found["span_starts"].shape == (len(source.ids), 5)
        for row, example in enumerate(source.examples):
            for start, end in zip(found["span_starts"][row], found["span_ends"][row], strict=True):
                words = example.text[start:end]
                assert words == words.strip() != "" or int(start) == -1
                if snap == "true" and int(start) != -1:
                    assert words[-1] == "."
                    assert example.text[:start].rstrip()[-1:] in ("", ".")


def everything(task) -> dict[str, np.ndarray]:
    source = task.source("val")
    with torch.inference_mode():
        found = task.predict(task.model.eval(), source.collate(range(len(source.ids))))
    return {name: value.numpy() for name, value in found.items()}


def test_a_report_has_intervals_baselines_and_what_was_left_out(make_task):
    task = make_task()
    found = everything(task)
    rule = task.evaluation.fit_decision_rule(found)
    report = task.evaluation.report(SplitPredictions("val", found, rule))
    figures = task.input_metrics(SplitPredictions("val", found, rule), predict=None)
    assert figures["n_pairs_with_unknown_evidence"] == 1
    assert figures["n_unreachable_gold_spans"] == 0
    assert report["hard_negatives/n_pairs"] == 1
    assert report["null_score_diff_threshold"] == rule["null_score_diff_threshold"]
    assert report["baseline_first_sentence/n_predicted_spans"] == 5
    assert report["baseline_first_sentence/answerable/evidence_token_f1"] > 0
    assert report["baseline_none/evidence_exact_match"] == pytest.approx((1 / 3 + 1) / 2)
    # What the random model predicts decides whether so few posts have an interval.
    low, high = (report[f"evidence_token_f1_ci_{end}"] for end in ("low", "high"))
    if low is None:
        assert report["evidence_token_f1_ci_low_undefined"].startswith("too few")
    else:
        assert 0 <= low <= report["evidence_token_f1"] <= high <= 1
    assert "UAX 29" in report["word_segmentation"]
    assert SECRET not in json.dumps(report)
    table = task.evaluation.summary(report)
    assert "whole post" in table
    assert "2/5" in table


def test_records_hold_ids_offsets_and_scores_but_no_text(make_task):
    task = make_task()
    found = everything(task)
    rule = {"null_score_diff_threshold": 1e9}
    lines = list(task.evaluation.records(SplitPredictions("val", found, rule)))
    assert [line["example_id"] for line in lines] == task.source("val").ids
    assert [
        {name: gold[name] for name in ("start_char", "end_char")}
        for gold in lines[0]["gold_evidence"]
    ] == [{"start_char": s.start_char, "end_char": s.end_char} for s in VAL[0].evidence]
    assert all(1 <= len(line["evidence"]) <= 5 for line in lines)
    assert set(lines[0]["evidence"][0]) == {"start_char", "end_char", "score", "right"}
    assert lines[0]["null_score_diff"] == -lines[0]["evidence"][0]["score"]
    assert SECRET not in json.dumps(lines)


def test_records_tell_right_spans_and_found_gold_as_the_figures_count_them(make_task):
    task = make_task()
    found = everything(task)
    for row, example in enumerate(VAL):
        if example.evidence:
            found["span_starts"][row, 0], found["span_ends"][row, 0] = (
                example.evidence[0].start_char,
                example.evidence[0].end_char,
            )
    rule = {"null_score_diff_threshold": 1e9}
    lines = list(task.evaluation.records(SplitPredictions("val", found, rule)))
    figures = task.evaluation.metrics(SplitPredictions("val", found, rule))
    predicted = [span["right"] for line in lines for span in line["evidence"]]
    gold = [span["found"] for line in lines for span in line["gold_evidence"]]
    assert set(predicted) == {True, False}
    assert np.mean(predicted) == pytest.approx(figures["evidence_iou_precision_micro"])
    assert np.mean(gold) == pytest.approx(figures["evidence_iou_recall_micro"])
    none = list(
        task.evaluation.records(SplitPredictions("val", found, {"null_score_diff_threshold": -1e9}))
    )
    assert all(line["evidence"] == [] for line in none)


def test_training_may_be_steered_by_what_is_better_when_higher(make_task):
    monitors = make_task().evaluation.monitors()
    assert {monitors[name] for name in monitors} == {"max"}
    assert {
        "evidence_iou_f1",
        "evidence_iou_f1_micro",
        "answerable/evidence_exact_match",
        "evidence_detection_average_precision",
        "per_criterion/A.1/evidence_char_f1",
    } <= set(monitors)
    assert not [name for name in monitors if "n_pairs" in name or "threshold" in name]


def test_more_positions_than_the_encoder_has_are_refused(make_task):
    with pytest.raises(ConfigError, match=r"`model\.max_length` must be at most 128"):
        make_task("model.max_length=129")
