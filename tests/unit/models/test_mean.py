"""The mean of several models of tokens, against probabilities that are averaged by hand."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from psy_agents_noaug.models.mean import MeanModel, mean_logits, mean_odds


def test_probabilities_of_starts_and_ends_are_the_means_of_the_members():
    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(4, 7, 2, generator=generator) for _ in range(3)]
    for own in logits:  # padding, and a token that only some members rule out
        own[:, 5:] = -torch.inf
    logits[0][1, 3] = -torch.inf
    together = softmax(mean_logits(logits).numpy().astype(float), axis=1)
    by_hand = np.mean([softmax(own.numpy().astype(float), axis=1) for own in logits], axis=0)
    assert together == pytest.approx(by_hand, abs=1e-6)
    assert not together[:, 5:].any()


def test_probabilities_of_labels_are_the_means_of_the_members_at_the_ends_too():
    odds = [torch.tensor([0.3, -4.0, 60.0, -80.0]), torch.tensor([-2.0, 5.0, 70.0, -90.0])]
    together = expit(mean_odds(odds).numpy().astype(float))
    by_hand = np.mean([expit(own.numpy().astype(float)) for own in odds], axis=0)
    assert together == pytest.approx(by_hand, rel=1e-5)


def test_padding_of_a_window_does_not_change_a_bit():
    logits = [torch.randn(2, 9, 2, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
    padded = [torch.cat([own, torch.full((2, 55, 2), -torch.inf)], dim=1) for own in logits]
    assert torch.equal(mean_logits(padded)[:, :9], mean_logits(logits))


def test_a_mean_model_gives_what_one_of_its_models_gives():
    class Joint(torch.nn.Module):
        def forward(self, odds: float) -> tuple[torch.Tensor, torch.Tensor, str]:
            return torch.tensor([odds]), torch.zeros(1, 2, 2), "third"

    odds, spans, third = MeanModel([Joint(), Joint()])(odds=1.0)
    assert float(odds) == pytest.approx(1.0)
    assert spans.numpy() == pytest.approx(np.log(np.full((1, 2, 2), 0.5)))
    assert third == "third"
