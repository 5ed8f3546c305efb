"""The tasks with `model.architecture=label_attention`: an example is a text with all of its pairs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.data.alignment import Span
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.models.encoder import load_encoder
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.tasks.base import ENCODER, SplitPredictions, TaskInputs
from psy_agents_noaug.tasks.build import build_task
from psy_agents_noaug.training.distributed import DistributedContext
from psy_agents_noaug.training.evaluator import Evaluator
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.training.precision import Precision

CRITERIA = MAJOR_DEPRESSIVE_EPISODE[:3]
FILLER = "The bus was late again this morning. "
FOUND = "I bought a lamp."
LABEL_ATTENTION = "model.architecture=label_attention"
TASKS = ("criteria", "evidence", "joint")


def make_example(post: int, criterion: int, *, met: bool = False, known: bool = True) -> Example:
    criterion_id = CRITERIA[criterion].criterion_id
    text = f"{FILLER * (1 + 2 * post)}{FOUND} It is {post}."
    at = text.find(FOUND)
    return Example(
        example_id=f"p{post}/{criterion_id}",
        post_id=f"p{post}",
        group_id=f"p{post}",
        criterion_id=criterion_id,
        text=text,
        label=int(met),
        annotated=met,
        evidence=(Span(at, at + len(FOUND)),) if met and known else (),
        hard_negative_spans=(),
    )


# Criterion by criterion, so that the pairs of a post are not neighbours.
PAIRS = [make_example(post, c, met=(post + c) % 3 == 0) for c in range(3) for post in range(4)]
# Of one post a pair is met, and nobody said where.
WITH_UNKNOWN = [replace(pair, evidence=()) if pair is PAIRS[0] else pair for pair in PAIRS]


@pytest.fixture
def make_task(overrides_for, tmp_path, tiny_encoder):
    """Return a function from a task's name and overrides to it, without dropout."""

    def make(name, *overrides, train=PAIRS, val=PAIRS, criteria=CRITERIA, max_tokens=4096):
        fixed = ("model.head_dropout=0.0", "model.encoder_dropout=0.0", "model.max_length=64")
        chosen = [*overrides_for(tmp_path, name), "data.negatives=all", *fixed, *overrides]
        torch.manual_seed(5)
        inputs = TaskInputs(
            {ENCODER: load_encoder(str(tiny_encoder), dropout=0.0)},
            criteria,
            {"train": train, "val": val},
            max_tokens,
        )
        return build_task(load_train_config(name, chosen), inputs)

    return make


def predicted(task, source=None, *, max_tokens: int = 256) -> dict[str, np.ndarray]:
    cpu = torch.device("cpu")
    precision = Precision("off", device=cpu, supports_bf16=False, supports_fp16=False)
    hardware = Hardware(DistributedContext(device=cpu), precision, {"num_workers": 0}, max_tokens)
    evaluator = Evaluator(task, hardware, eval_batch_size=64)
    return evaluator.predict(task.model, source or task.source("val"))


@pytest.mark.parametrize("name", TASKS)
def test_a_pair_is_predicted_alike_alone_and_among_the_pairs_of_its_text(make_task, name):
    task = make_task(name, LABEL_ATTENTION)
    together, examples = predicted(task), task.examples["val"]
    assert len(task.source("val").ids) == 4 < len(examples)
    assert task.source("val").predicted_ids == [example.example_id for example in examples]
    for row, example in enumerate(examples):
        for key, values in predicted(task, task.encode("val", [example])).items():
            np.testing.assert_allclose(values[0], together[key][row], atol=2e-6, err_msg=key)
    # The criteria differ, and so do the texts.
    first = "probabilities" if name == "criteria" else "span_scores"
    assert len(np.unique(together[first].reshape(len(examples), -1)[:, 0])) == len(examples)


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_of_a_text_is_the_mean_of_the_losses_of_its_pairs(make_task, name):
    task = make_task(name, LABEL_ATTENTION, train=WITH_UNKNOWN)
    source = task.source("train")
    losses = task.loss(task.model.eval(), source.collate(range(len(source.ids))))
    examples = task.examples["train"]
    assert len(examples) == len(PAIRS) - (name == "evidence")  # whose evidence is not known
    for position, own in enumerate(source.members):
        alone = [
            task.loss(task.model, task.encode("train", [examples[pair]]).collate([0]))[0]
            for pair in own
        ]
        torch.testing.assert_close(losses[position], torch.stack(alone).mean(dim=0))
    if name == "joint":
        unknown = task.encode("train", [WITH_UNKNOWN[0]]).collate([0])
        of_label, of_evidence = task.loss(task.model, unknown)[0]
        assert of_label > 0 == of_evidence


@pytest.mark.parametrize("name", TASKS)
def test_prediction_lines_have_the_order_and_the_keys_of_the_cross_encoders(make_task, name):
    lines = []
    for architecture in ("cross_encoder", "label_attention"):
        task = make_task(name, f"model.architecture={architecture}")
        values = predicted(task)
        rule = task.evaluation.fit_decision_rule(values)
        lines.append(list(task.evaluation.records(SplitPredictions("val", values, rule))))
    one, other = lines
    assert [line["example_id"] for line in one] == [line["example_id"] for line in other]
    assert [list(line) for line in one] == [list(line) for line in other]


def test_unannotated_texts_are_drawn_for_each_text_with_a_met_pair(make_task):
    # Posts 0 to 5 have met pairs; 6 to 15 nothing that is annotated.
    train = [make_example(post, c, met=c == 0 and post < 6) for c in range(3) for post in range(16)]
    task = make_task(
        "criteria",
        LABEL_ATTENTION,
        "data.negatives=0.5",
        "task.class_weights=balanced",
        train=train,
    )
    pools = [task.epoch_pool(epoch).tolist() for epoch in range(4)]
    assert {len(pool) for pool in pools} == {6 + 3}
    assert len(set(map(tuple, pools))) > 1
    assert task.source("train").ids == [f"p{post}" for post in range(16)]
    for pool in pools:
        assert set(pool) >= set(range(6))
    # Of the 27 pairs of an epoch 6 are met.
    plain = make_task("criteria", LABEL_ATTENTION, "data.negatives=0.5", train=train)
    unmet, met = ([train[16 + 6]], [train[0]])
    for pair, weight in ((unmet, 27 / (2 * 21)), (met, 27 / (2 * 6))):
        batch = task.encode("train", pair).collate([0])
        ratio = task.loss(task.model.eval(), batch) / plain.loss(plain.model.eval(), batch)
        assert ratio.item() == pytest.approx(weight, rel=1e-5)


def test_a_text_whose_evidence_no_window_holds_is_not_trained_on(make_task):
    whole = make_example(8, 0, met=True)  # a long post
    whole = replace(whole, evidence=(Span(0, len(whole.text)),))
    task = make_task("evidence", LABEL_ATTENTION, train=[*PAIRS, whole])
    assert task.source("train").ids[-1] == "p8"
    assert task.epoch_pool(0).tolist() == [0, 1, 2, 3]
    beside = make_task("evidence", LABEL_ATTENTION, train=[*PAIRS, whole, make_example(8, 1)])
    assert beside.epoch_pool(0).tolist() == [0, 1, 2, 3, 4]


def test_sentences_are_texts_of_their_own(overrides_for, tmp_path, tiny_encoder):
    settings = [*overrides_for(tmp_path), "data.unit=sentence", LABEL_ATTENTION]
    config = load_train_config("criteria", settings)
    data = prepare_data(config)
    examples = {split: data.examples[split] for split in ("train", "val")}
    inputs = TaskInputs({ENCODER: load_encoder(str(tiny_encoder))}, data.criteria, examples, 4096)
    task = build_task(config, inputs)
    source = task.source("val")
    places = list(dict.fromkeys((e.post_id, e.sentence) for e in examples["val"]))
    assert len(source.ids) == len(set(source.ids)) == len(places) > 8
    found = predicted(task)["probabilities"]
    for row in (0, 13, len(found) - 1):
        alone = predicted(task, task.encode("val", [examples["val"][row]]))
        np.testing.assert_allclose(alone["probabilities"], found[row], atol=1e-5)


def test_the_text_of_a_criterion_is_read_whole_or_refused(make_task):
    def of(words: int):
        return [*CRITERIA[:2], replace(CRITERIA[2], text="late " * words)]

    beyond_a_window = make_task("criteria", LABEL_ATTENTION, criteria=of(90))
    batch = beyond_a_window.source("val").collate([0])
    assert batch["criterion/input_ids"].shape == (3, 92)
    message = r"at most 128 tokens, the encoder's positions, but these have up to 202: A\.3"
    with pytest.raises(ConfigError, match=message):
        make_task("criteria", LABEL_ATTENTION, criteria=of(200)).source("val")


@pytest.mark.parametrize("vectors", ["encoded", "learned"])
def test_adapters_and_recomputed_activations_train_every_part(make_task, vectors):
    task = make_task(
        "joint",
        LABEL_ATTENTION,
        "model.lora={rank: 2}",
        "training.gradient_checkpointing=true",
        f"model.criterion_vectors={vectors}",
    )
    batch = task.source("train").collate([0, 1])
    task.loss(task.model.train(), batch).sum().backward()
    without = [n for n, p in task.model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    adapted = make_task(
        "joint", LABEL_ATTENTION, "model.lora={rank: 2}", f"model.criterion_vectors={vectors}"
    )
    with torch.no_grad():
        for parameter in adapted.model.parameters():
            parameter.add_(0.01)
    adapted.model.load_state_dict(task.model.state_dict())
    for key, values in predicted(task).items():
        np.testing.assert_array_equal(values, predicted(adapted)[key])


@pytest.mark.parametrize("architecture", ["cross_encoder", "label_attention"])
def test_a_post_of_seven_thousand_words_is_read_whole_in_bounded_memory(make_task, architecture):
    text = FILLER * 1000
    pairs = [replace(make_example(0, c, met=c == 0), text=text, evidence=()) for c in range(2)]
    budget = 640
    task = make_task(
        "criteria",
        f"model.architecture={architecture}",
        "training.execution=padded",
        train=pairs,
        val=pairs,
        max_tokens=budget,
    )
    passes: list[int] = []
    hook = task.encoder_modules[0].register_forward_pre_hook(
        lambda _, __, inputs: passes.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    source = task.source("train")
    task.loss(task.model.train(), source.collate(range(len(source.ids)))).sum().backward()
    found = predicted(task, max_tokens=budget)["probabilities"]
    hook.remove()
    windows = source.pairs.windows
    assert (np.diff(windows.starts) > 100).all()
    assert max(passes) <= budget < windows.rows.lengths.sum()
    # Each window as a post of its own.
    for row, pair in enumerate(pairs):
        odds = []
        for window in range(windows.starts[row], windows.starts[row + 1]):
            begin = windows.begins[window]
            end = begin + len(windows.rows.parts[window][1])
            # Each token of this post is a word or a full stop.
            part = " ".join(FILLER.replace(".", " .").split() * 1000).split()[begin:end]
            odds.append(replace(pair, text=" ".join(part), post_id=f"w{window}"))
        alone = predicted(task, task.encode("val", odds))["probabilities"]
        assert found[row] == pytest.approx(alone.max(), abs=1e-5)
        assert alone.max() > alone.min() + 1e-4


@pytest.mark.parametrize("architecture", ["cross_encoder", "label_attention"])
def test_a_truncated_post_is_its_first_window(make_task, architecture):
    chosen = f"model.architecture={architecture}"
    whole, cut = (
        make_task("criteria", chosen, f"task.long_posts={how}") for how in ("windows", "truncate")
    )
    windows, first = (task.source("val").pairs.windows for task in (whole, cut))
    assert len(windows.begins) > len(first.begins) == len(PAIRS)
    for pair in range(len(PAIRS)):
        for one, other in zip(
            windows.rows.row(windows.starts[pair]), first.rows.row(pair), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    assert first.rows.truncated.sum() == (np.diff(windows.starts) > 1).sum() > 0


def test_the_windows_of_a_pair_do_not_depend_on_the_other_pairs(make_task):
    criteria = [replace(CRITERIA[0], text="Sad."), *CRITERIA[1:]]
    task = make_task("criteria", criteria=criteria)
    windows = task.source("val").windows
    for pair, example in enumerate(PAIRS):
        alone = task.encode("val", [example]).windows
        own = slice(windows.starts[pair], windows.starts[pair + 1])
        assert alone.begins.tolist() == windows.begins[own].tolist()


@pytest.mark.parametrize("name", ["criteria", "evidence"])
def test_windows_are_counted_as_often_as_the_encoder_reads_them(make_task, name):
    task = make_task(name, LABEL_ATTENTION)
    source = task.source("val")
    figures = task.input_metrics(SplitPredictions("val", {}, {}), predict=None)
    assert figures["n_windows"] == len(source.collate(range(len(source.ids)))["input_ids"]) > 4
