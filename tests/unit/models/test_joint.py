import math

import pytest
import torch
from torch import nn

from psy_agents_noaug.models.encoder import load_encoder
from psy_agents_noaug.models.evidence import NULL_POSITION, EvidenceModel
from psy_agents_noaug.models.joint import JointModel, pool_windows, span_attention
from psy_agents_noaug.training.optim import build_optimizer


def make_model(tiny_encoder, *, shared: bool, **changes) -> JointModel:
    torch.manual_seed(3)
    first, second = (load_encoder(str(tiny_encoder), dropout=0.0).model for _ in range(2))
    evidence = EvidenceModel(
        first, hidden_size=32, head_layers=1, head_width=None, head_dropout=0.0, max_tokens=9999
    )
    settings = {
        "hidden_size": 32,
        "evidence_hidden_size": 32,
        "fusion": "none",
        "window_pooling": "max",
        "learned_weights": False,
        "pooling": "mean",
        "head_layers": 1,
        "head_width": None,
        "head_dropout": 0.0,
    }
    return JointModel(evidence, None if shared else second, **(settings | changes)).eval()


def batch(pairs=(0, 0, 1), tokens: int = 6) -> dict[str, object]:
    rows = len(pairs)
    torch.manual_seed(1)
    inputs = {
        "input_ids": torch.randint(5, 200, (rows, tokens)),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.long),
    }
    context = torch.zeros(rows, tokens, dtype=torch.long)
    context[:, 2:] = 1
    # The last row is shorter than the others.
    inputs["input_ids"][-1, -2:] = 0
    inputs["attention_mask"][-1, -2:] = context[-1, -2:] = 0
    return {
        "criteria": inputs,
        "evidence": inputs,
        "criteria_pairs": torch.tensor(pairs),
        "evidence_pairs": torch.tensor(pairs),
        "context_mask": context,
    }


def test_a_shared_encoder_is_one_set_of_parameters_and_runs_once(tiny_encoder):
    calls = []
    shared, separate = (make_model(tiny_encoder, shared=value) for value in (True, False))
    for model in (shared, separate):
        for module in model.modules():
            if module.__class__.__name__ == "BertModel":
                module.register_forward_hook(lambda *_: calls.append(1))
    shared(**batch())
    assert len(calls) == 1
    separate(**batch())
    assert len(calls) == 3
    count = {
        name: sum(p.numel() for p in m.parameters())
        for name, m in (("shared", shared), ("separate", separate))
    }
    encoder = sum(p.numel() for p in shared.evidence.encoder.parameters())
    assert count["separate"] - count["shared"] == encoder


@pytest.mark.parametrize("fusion", ["none", "concat", "evidence_attention"])
def test_the_label_sees_the_evidences_encoder_if_and_only_if_they_are_fused(tiny_encoder, fusion):
    model = make_model(tiny_encoder, shared=False, fusion=fusion)
    before, _, _ = model(**batch())
    with torch.no_grad():
        model.evidence.encoder.embeddings.word_embeddings.weight.mul_(-1.0)
    after, _, _ = model(**batch())
    assert torch.equal(before, after) == (fusion == "none")


def test_a_pair_does_not_depend_on_the_other_pairs_windows(tiny_encoder):
    for fusion in ("concat", "evidence_attention"):
        model = make_model(tiny_encoder, shared=True, fusion=fusion)
        whole = batch()
        together, _, _ = model(**whole)
        own = {name: value[2:, :4] for name, value in whole["evidence"].items()}
        alone, _, _ = model(
            own, own, torch.tensor([0]), torch.tensor([0]), whole["context_mask"][2:, :4]
        )
        torch.testing.assert_close(together[1:], alone)


def test_windows_are_pooled_to_the_pair_by_the_most_convinced_or_by_their_mean_odds():
    log_odds, pairs = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0, 0, 1])
    assert pool_windows(log_odds, pairs, 2, kind="max").tolist() == [1.0, 0.5]
    pooled = pool_windows(log_odds, pairs, 2, kind="logsumexp")
    expected = [math.log((math.exp(1.0) + math.exp(-2.0)) / 2), 0.5]
    assert pooled.tolist() == pytest.approx(expected)


def test_the_mean_odds_of_equal_windows_are_theirs_however_many():
    for count in (1, 3, 50):
        pooled = pool_windows(
            torch.full((count,), -0.7), torch.zeros(count, dtype=torch.long), 1, kind="logsumexp"
        )
        assert float(pooled) == pytest.approx(-0.7, abs=1e-5)


def test_attention_is_on_the_tokens_between_the_borders_or_on_the_null_position():
    logits = torch.full((4, 5, 2), -30.0)
    logits[:, 1] = -math.inf
    logits[0, 2, 0] = logits[0, 3, 1] = 30.0
    logits[1, NULL_POSITION] = 30.0
    logits[2, NULL_POSITION] = logits[2, 4] = 0.0
    logits[3, 4, 0] = logits[3, 2, 1] = 30.0  # an end before the start is no span
    weights = span_attention(logits)
    assert weights.sum(dim=1).tolist() == pytest.approx([1.0] * 4)
    assert weights[0].tolist() == pytest.approx([0, 0, 0.5, 0.5, 0], abs=1e-5)
    assert weights[1].tolist() == pytest.approx([1, 0, 0, 0, 0], abs=1e-5)
    assert weights[2].tolist() == pytest.approx([0.75, 0, 0, 0, 0.25], abs=1e-5)
    assert weights[3].tolist() == pytest.approx([1, 0, 0, 0, 0], abs=1e-5)


def test_attention_has_finite_gradients_where_tokens_are_masked():
    logits = torch.zeros(1, 4, 2, requires_grad=True)
    masked = logits.masked_fill(torch.tensor([[[False], [True], [False], [True]]]), -math.inf)
    (span_attention(masked) * torch.arange(4.0)).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_learned_weights_are_two_parameters_that_start_at_one(tiny_encoder):
    model = make_model(tiny_encoder, shared=True, learned_weights=True)
    assert isinstance(model.log_variances, nn.Parameter)
    assert model(**batch())[2].tolist() == [0.0, 0.0]


def test_a_rate_of_its_own_is_for_the_heads_alone(tiny_encoder):
    model = make_model(tiny_encoder, shared=False, fusion="concat", learned_weights=True)
    encoders = (model.criteria_encoder, model.evidence.encoder)
    optimizer = build_optimizer(
        model,
        encoders=encoders,
        learning_rate=1e-5,
        head_learning_rate=1e-3,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        epsilon=1e-8,
    )
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    slow = {name for name, p in model.named_parameters() if rates[id(p)] == 1e-5}
    assert len(slow) == sum(len(list(encoder.parameters())) for encoder in encoders)
    assert not [name for name in slow if "head." in name or "log_variances" in name]
