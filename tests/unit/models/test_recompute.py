"""Dropout draws the same masks when activations are computed again, on any device.

A generator of our own stands in for that of a card, which PyTorch knows nothing of.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from psy_agents_noaug.models import encoder as encoder_module
from psy_agents_noaug.models import recompute
from psy_agents_noaug.models.encoder import encode_rows
from psy_agents_noaug.models.recompute import recompute_activations, recomputed

CARD = torch.Generator()


class CardDropout(nn.Module):
    """Dropout whose masks come from the stand-in for the card's generator."""

    def forward(self, values: Tensor) -> Tensor:
        return values * (torch.rand(values.shape, generator=CARD) > 0.3)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(get_rng_state=CARD.get_state, set_rng_state=CARD.set_state)
    monkeypatch.setattr(recompute, "generator_of", lambda device: module)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    ids = torch.arange(30).view(5, 6)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def bert() -> BertModel:
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )
    for layer in model.encoder.layer:
        layer.output.dropout = CardDropout()
    return model.train()


def gradients(model: nn.Module, output: Tensor) -> list[Tensor]:
    output.square().sum().backward()
    # What the card draws next is what it would draw without any repetition.
    drawn_next = torch.rand(3, generator=CARD)
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) > 20
    return [*found, drawn_next]


@pytest.mark.faults(
    "windows that go through the encoder in turns, on a card",
    "dropout drops the same going backward: the gradients are right",
)
def test_turns_drop_the_same_on_a_card_when_they_are_computed_again(
    card: None, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for again in (recomputed, lambda function, *tensors: function(*tensors)):
        monkeypatch.setattr(encoder_module, "recomputed", again)
        CARD.manual_seed(7)
        model = bert()
        found.append(gradients(model, encode_rows(model, inputs, max_tokens=12)))
    assert all(map(torch.equal, *found))


@pytest.mark.faults(
    "`training.gradient_checkpointing` on a card that PyTorch does not restore (MPS)",
    "dropout drops the same going backward: the gradients are right",
)
def test_layers_drop_the_same_on_a_card_when_they_are_computed_again(
    card: None, inputs: dict[str, Tensor]
) -> None:
    found = []
    for again in (True, False):
        CARD.manual_seed(7)
        model = bert()
        if again:
            recompute_activations(model)
        found.append(gradients(model, model(**inputs).last_hidden_state))
    assert all(map(torch.equal, *found))


def test_pytorch_is_given_the_tensors_whose_device_it_restores(
    inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[Tensor]] = []
    original = recompute.checkpoint

    def watched(function: object, *tensors: Tensor, **options: object) -> Tensor:
        given.append([tensor for tensor in tensors if isinstance(tensor, Tensor)])
        return original(function, *tensors, **options)

    monkeypatch.setattr(recompute, "checkpoint", watched)
    encode_rows(bert(), inputs, max_tokens=12)
    assert [[tuple(tensor.shape) for tensor in turn] for turn in given] == [
        [(2, 6)] * 2,
        [(2, 6)] * 2,
        [(1, 6)] * 2,
    ]
