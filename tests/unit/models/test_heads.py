import pytest
import torch
from torch import nn

from psy_agents_noaug.models.criteria import CriteriaModel
from psy_agents_noaug.models.heads import ClassificationHead, Pooling

KINDS = ["cls", "mean", "max", "attention"]

# Two sequences of 3 and 2 tokens, width 2; the last row of the second is padding.
HIDDEN = torch.tensor(
    [[[1.0, -4.0], [2.0, -5.0], [6.0, -9.0]], [[3.0, -1.0], [5.0, -7.0], [99, 99]]]
)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cls", [[1.0, -4.0], [3.0, -1.0]]),
        ("mean", [[3.0, -6.0], [4.0, -4.0]]),
        ("max", [[6.0, -4.0], [5.0, -1.0]]),
    ],
)
def test_a_pooling_is_what_its_name_says(kind, expected):
    assert Pooling(kind, 2)(HIDDEN, MASK).tolist() == expected


def test_attention_pooling_is_a_softmax_weighted_mean():
    pooling = Pooling("attention", 2)
    assert pooling.score is not None
    with torch.no_grad():
        pooling.score.weight.copy_(torch.tensor([[1.0, 0.0]]))
    weights = torch.tensor([3.0, 5.0]).softmax(0)
    expected = weights[0] * HIDDEN[1, 0] + weights[1] * HIDDEN[1, 1]
    torch.testing.assert_close(pooling(HIDDEN, MASK)[1], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_never_matters(kind):
    torch.manual_seed(0)
    pooling = Pooling(kind, 8)
    hidden = torch.randn(3, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    spoiled = hidden.masked_fill(mask.unsqueeze(-1) == 0, 1e4)
    torch.testing.assert_close(pooling(spoiled, mask), pooling(hidden, mask))
    alone = pooling(hidden[1:2, :2], mask[1:2, :2])
    torch.testing.assert_close(pooling(spoiled, mask)[1:2], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_vectors_stay_bf16(kind):
    pooling = Pooling(kind, 2).bfloat16()
    assert pooling(HIDDEN.bfloat16(), MASK).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("layers", "width", "shapes"),
    [
        (1, None, [(3, 8)]),
        (1, 5, [(3, 8)]),
        (2, None, [(8, 8), (3, 8)]),
        (3, 5, [(5, 8), (5, 5), (3, 5)]),
    ],
)
def test_a_head_is_as_deep_and_wide_as_asked(layers, width, shapes):
    head = ClassificationHead(8, classes=3, layers=layers, width=width, dropout=0.25)
    found = [tuple(m.weight.shape) for m in head.modules() if isinstance(m, nn.Linear)]
    assert found == shapes
    assert [m.p for m in head.modules() if isinstance(m, nn.Dropout)] == [0.25] * layers
    assert sum(isinstance(m, nn.GELU) for m in head.modules()) == layers - 1
    assert head(torch.zeros(4, 8)).shape == (4, 3)


class FixedVectors(nn.Module):
    """Stands in for an encoder, and keeps what it was called with."""

    def forward(self, **inputs):
        self.inputs = inputs
        return type("Outputs", (), {"last_hidden_state": HIDDEN})()


def test_the_criteria_model_is_encoder_pooling_head():
    encoder = FixedVectors()
    options = {"hidden_size": 2, "head_layers": 1, "head_width": None, "head_dropout": 0.0}
    model = CriteriaModel(encoder, pooling="mean", window_pooling="max", max_tokens=99, **options)
    inputs = {"input_ids": torch.zeros(2, 3), "attention_mask": MASK}
    odds = model(inputs, pairs=torch.tensor([0, 1]), n_pairs=2)
    assert set(encoder.inputs) == {"input_ids", "attention_mask"}
    logits = model.head(torch.tensor([[3.0, -6.0], [4.0, -4.0]]))
    torch.testing.assert_close(odds, logits[:, 1] - logits[:, 0])
    model(inputs | {"token_type_ids": torch.ones(2, 3)}, pairs=torch.tensor([0, 1]), n_pairs=2)
    assert encoder.inputs["token_type_ids"].sum() == 6


def test_the_criteria_model_takes_the_highest_odds_of_a_pairs_windows():
    options = {"hidden_size": 2, "head_layers": 1, "head_width": None, "head_dropout": 0.0}
    model = CriteriaModel(
        FixedVectors(), pooling="mean", window_pooling="max", max_tokens=99, **options
    )
    inputs = {"input_ids": torch.zeros(2, 3), "attention_mask": MASK}
    alone = model(inputs, pairs=torch.tensor([0, 1]), n_pairs=2)
    together = model(inputs, pairs=torch.tensor([0, 0]), n_pairs=1)
    assert together.tolist() == [alone.max().item()]
