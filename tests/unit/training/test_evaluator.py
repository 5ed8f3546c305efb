from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.tasks.base import RowSizes
from psy_agents_noaug.training.distributed import DistributedContext
from psy_agents_noaug.training.evaluator import Evaluator, PredictionStopped
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.training.precision import Precision

CPU = torch.device("cpu")
LENGTHS = np.random.default_rng(1).integers(3, 40, size=23)


def fake_source(ids, **more):
    """A source whose examples give a row each: their own index."""
    return SimpleNamespace(
        **{
            "ids": ids,
            "predicted_ids": ids,
            "predicted": list,
            "collate": lambda indices: {"rows": torch.tensor(indices)},
            **more,
        }
    )


class FakeTask:
    """Predicts each example's own index and one of two figures of it."""

    name = "fake"
    packs = False
    evaluation: "FakeEvaluation"

    def __init__(self) -> None:
        self.modes: list[tuple[bool, bool]] = []
        self.sizes: list[int] = []
        self.evaluation = FakeEvaluation()

    def source(self, split):
        return fake_source([f"{split}{k}" for k in range(23)], lengths=LENGTHS)

    def predict(self, model, batch):
        self.modes.append((model.training, torch.is_grad_enabled()))
        self.sizes.append(len(batch["rows"]))
        rows = batch["rows"].float()
        return {"rows": rows, "spans": torch.stack([rows, rows * 2], dim=1)}


class FakeEvaluation:
    def fit_decision_rule(self, predictions):
        return {"mean": float(predictions["rows"].mean())}

    def metrics(self, predicted):
        return {"n": len(predicted.values["rows"]), "split": predicted.split, **predicted.rule}


@pytest.fixture
def task():
    return FakeTask()


def evaluator(task, *, batch_size=8, max_tokens=128, amp="off") -> Evaluator:
    precision = Precision(amp, device=CPU, supports_bf16=True, supports_fp16=False)
    hardware = Hardware(DistributedContext(device=CPU), precision, {"num_workers": 0}, max_tokens)
    return Evaluator(task, hardware, eval_batch_size=batch_size)


@pytest.mark.parametrize(("batch_size", "max_tokens"), [(1, 999), (8, 128), (64, 50), (64, 10**6)])
def test_predictions_come_back_in_the_splits_order(task, batch_size, max_tokens):
    chosen = evaluator(task, batch_size=batch_size, max_tokens=max_tokens)
    predictions = chosen.predict(nn.Identity(), task.source("val"))
    assert predictions["rows"].tolist() == list(range(23))
    assert predictions["spans"].tolist() == [[k, 2 * k] for k in range(23)]
    assert max(task.sizes) <= batch_size
    assert sum(task.sizes) == 23


def test_examples_of_several_pairs_give_the_predictions_of_pairs_in_the_splits_order(task):
    def predicted(indices):
        return [row for k in indices for row in (k, 23 + k, 46 + k)]

    source = fake_source(
        list(map(str, range(23))),
        lengths=LENGTHS,
        predicted_ids=list(map(str, range(69))),
        predicted=predicted,
        collate=lambda indices: {"rows": torch.tensor(predicted(indices))},
    )
    found = evaluator(task, batch_size=4).predict(nn.Identity(), source)
    assert found["rows"].tolist() == list(range(69))


@pytest.mark.parametrize(
    ("packs", "max_tokens", "sizes"), [(False, 50, [2, 2]), (True, 51, [3, 1]), (True, 50, [2, 2])]
)
def test_batches_of_examples_with_several_rows_fill_the_budget(task, packs, max_tokens, sizes):
    task.packs = packs
    source = fake_source(
        list("abcd"),
        lengths=np.asarray([40, 10, 10, 10]),
        sizes=RowSizes(np.asarray([4, 1, 1, 1]), np.full(4, 10), np.asarray([31, 10, 10, 10])),
    )
    found = evaluator(task, max_tokens=max_tokens).predict(nn.Identity(), source)
    assert found["rows"].tolist() == [0, 1, 2, 3]
    assert task.sizes == sizes


def test_out_of_memory_halves_the_batches_and_predicts_anew(task, monkeypatch):
    original = task.predict

    def within(model, batch):
        if len(batch["rows"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, batch)

    monkeypatch.setattr(task, "predict", within)
    model = nn.Linear(1, 1).train()
    predictions = evaluator(task, batch_size=64, max_tokens=4096).predict(model, task.source("val"))
    assert predictions["rows"].tolist() == list(range(23))
    assert model.training


def test_memory_for_not_even_one_example_is_an_error_that_says_what_to_do(task, monkeypatch):
    def never(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(task, "predict", never)
    with pytest.raises(ConfigError, match="micro_batch_tokens"):
        evaluator(task).predict(nn.Identity(), task.source("val"))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_predicts_in_evaluation_mode_and_gets_its_own_mode_back(task, training):
    model = nn.Linear(1, 1).train(training)
    evaluator(task).predict(model, task.source("val"))
    assert set(task.modes) == {(False, False)}
    assert model.training is training


class Casts(TorchDispatchMode):
    """Counts the weights that are cast to bf16."""

    n = 0

    def __torch_dispatch__(self, operation, types, arguments=(), settings=None):
        if operation is torch.ops.aten._to_copy.default:
            self.n += isinstance(arguments[0], nn.Parameter)
        return operation(*arguments, **(settings or {}))


def test_weights_are_cast_once_for_all_batches(task, monkeypatch):
    model = nn.Linear(1, 1, bias=False)
    monkeypatch.setattr(
        task,
        "predict",
        lambda model, batch: {"rows": model(batch["rows"][:, None].float()).float()},
    )
    with Casts() as casts:
        evaluator(task, amp="bf16").predict(model, task.source("val"))
    assert casts.n == 1


def test_a_decision_rule_is_fitted_on_val_alone(task):
    found = evaluator(task).evaluate(nn.Identity(), "val")
    assert found.predicted.rule == {"mean": 11.0}
    assert found.metrics == {"n": 23, "split": "val", "mean": 11.0}
    assert found.predicted.values["rows"].tolist() == list(range(23))
    for split in ("test", "train"):
        with pytest.raises(ValueError, match="fitted on val only"):
            evaluator(task).evaluate(nn.Identity(), split)


def test_a_decision_rule_that_is_given_is_used_as_it_is(task):
    found = evaluator(task).evaluate(nn.Identity(), "test", rule={"mean": 0.5})
    assert found.predicted.rule == {"mean": 0.5}
    assert found.metrics["mean"] == 0.5
    empty = evaluator(task).evaluate(nn.Identity(), "test", rule={})
    assert empty.predicted.rule == {}


def test_an_evaluation_can_be_broken_off_before_any_batch(task):
    with pytest.raises(PredictionStopped):
        evaluator(task, batch_size=2).predict(
            nn.Identity(), task.source("val"), should_stop=lambda: len(task.sizes) == 2
        )
    assert len(task.sizes) == 2
