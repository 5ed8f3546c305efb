import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from psy_agents_noaug.models.losses import classification_loss

LOGITS = torch.tensor([[0.3, -1.2], [2.0, 0.5], [-40.0, 40.0], [0.0, 0.0]])
LABELS = torch.tensor([0, 1, 1, 0])


def test_the_loss_is_torchs_cross_entropy_of_each_example():
    expected = functional.cross_entropy(LOGITS, LABELS, reduction="none")
    assert torch.equal(classification_loss(LOGITS, LABELS), expected)
    assert torch.equal(classification_loss(LOGITS, LABELS, focal_gamma=0.0), expected)


def test_class_weights_multiply_the_loss_of_their_class():
    loss = classification_loss(LOGITS, LABELS, class_weights=torch.tensor([2.0, 0.5]))
    expected = classification_loss(LOGITS, LABELS) * torch.tensor([2.0, 0.5, 0.5, 2.0])
    torch.testing.assert_close(loss, expected)


@given(
    margin=st.floats(-20, 20),
    gamma=st.floats(0.1, 5.0),
    label=st.sampled_from([0, 1]),
    weight=st.floats(0.1, 10),
)
def test_the_focal_loss_is_its_formula(margin, gamma, label, weight):
    logits = torch.tensor([[0.0, margin]], dtype=torch.float32)
    loss = classification_loss(
        logits,
        torch.tensor([label]),
        class_weights=torch.tensor([weight, weight]),
        focal_gamma=gamma,
    )
    margin = float(logits[0, 1])
    signed = margin if label == 1 else -margin
    p = 1 / (1 + math.exp(-signed))
    missing = 1 / (1 + math.exp(signed))  # 1 - p, without cancellation
    assert float(loss) == pytest.approx(-weight * missing**gamma * math.log(p), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 2.0])
def test_gradients_are_finite_where_the_model_is_certain(gamma):
    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    loss = classification_loss(logits, torch.tensor([1, 1]), focal_gamma=gamma)
    loss.sum().backward()
    assert loss[0] == 0.0
    assert torch.isfinite(logits.grad).all()


def test_half_precision_logits_are_judged_in_fp32():
    loss = classification_loss(LOGITS.bfloat16(), LABELS)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, classification_loss(LOGITS.bfloat16().float(), LABELS))
