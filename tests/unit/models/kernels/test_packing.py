import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModel

from psy_agents_noaug.models.encoder import add_lora, encode_rows
from psy_agents_noaug.models.execution import enable_packing, packing_obstacle, run_encoder
from psy_agents_noaug.models.kernels import attention
from psy_agents_noaug.models.kernels.attention import PackedAttention, Packing
from psy_agents_noaug.models.kernels.dropout import FastDropout, use_fast_dropout
from psy_agents_noaug.models.recompute import recompute_activations
from psy_agents_noaug.training.precision import Precision
from psy_agents_noaug.utils.host import to_device

SMALL = {
    "vocab_size": 90,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
ARCHITECTURES = {
    "bert": {},
    "roberta": {"type_vocab_size": 1},
    "electra": {"embedding_size": 8},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
}
LENGTHS = [20, 13, 13, 7, 1]
CPU = torch.device("cpu")


def build(architecture: str, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **SMALL, **ARCHITECTURES[architecture], **settings)
    model = AutoModel.from_config(config)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    packed = copy.deepcopy(model)
    enable_packing(packed)
    return SimpleNamespace(padded=model.eval(), packed=packed.eval())


@pytest.fixture(params=ARCHITECTURES)
def encoders(request):
    return build(request.param)


@pytest.fixture
def inputs():
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(4, 90, mask.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask.long()}


def gradients(model, hidden):
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2))
    (hidden * weights).mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(first, second):
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        torch.testing.assert_close(gradient, second[name], atol=1e-6, rtol=1e-4)


def test_packed_and_padded_hidden_states_agree(encoders, inputs):
    mask = inputs["attention_mask"].bool()
    padded, packed = (run_encoder(e, inputs)[mask] for e in (encoders.padded, encoders.packed))
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0.0)
    assert_same_gradients(gradients(encoders.padded, padded), gradients(encoders.packed, packed))


def test_first_tokens_alone_are_those_of_the_whole(encoders, inputs):
    padded, packed = (
        run_encoder(e, inputs, first_only=True) for e in (encoders.padded, encoders.packed)
    )
    assert packed.shape == (len(LENGTHS), 1, 16)
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0.0)
    assert_same_gradients(gradients(encoders.padded, padded), gradients(encoders.packed, packed))


def test_a_whole_pass_after_one_of_first_tokens_is_whole(encoders, inputs):
    before = run_encoder(encoders.packed, inputs)
    run_encoder(encoders.packed, inputs, first_only=True)
    assert torch.equal(run_encoder(encoders.packed, inputs), before)


def test_the_last_layer_computes_first_tokens_alone(inputs):
    packed = build("bert").packed
    rows = []
    packed.encoder.layer[-1].output.register_forward_hook(
        lambda module, _, output: rows.append(output.shape[1])
    )
    run_encoder(packed, inputs, first_only=True)
    run_encoder(packed, inputs)
    assert rows == [len(LENGTHS), sum(LENGTHS)]


def test_nothing_is_computed_for_padding(inputs):
    packed = build("bert").packed
    rows = []
    packed.encoder.layer[0].output.register_forward_hook(
        lambda module, _, output: rows.append(output.shape)
    )
    run_encoder(packed, inputs)
    assert rows == [(1, sum(LENGTHS), 16)]


@pytest.mark.parametrize("first_only", [False, True])
def test_in_bf16_on_a_cpu_rows_have_lengths_that_recur(inputs, first_only):
    encoders = build("bert")
    lengths = []
    encoders.packed.embeddings.register_forward_hook(
        lambda module, _, output: lengths.append(output.shape[1])
    )
    found = []
    for encoder in (encoders.padded, encoders.packed):
        # Weights as large as trained ones, so that attention matters.
        for name, weights in encoder.named_parameters():
            if weights.dim() == 2 and "embeddings" not in name:
                weights.data *= 8.0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = run_encoder(encoder, inputs, first_only=first_only)
        shown = hidden if first_only else hidden[inputs["attention_mask"].bool()]
        found.append((shown, gradients(encoder, shown)))
    assert lengths == [64]
    (padded, padded_gradients), (packed, packed_gradients) = found
    assert (packed - padded).norm() <= 0.03 * padded.norm()
    assert packed_gradients.keys() == padded_gradients.keys()
    for name, gradient in packed_gradients.items():
        # What is added to every key changes nothing: the gradient is rounding alone.
        if not name.endswith("key.bias"):
            other = padded_gradients[name]
            assert (gradient - other).norm() <= 0.1 * other.norm(), name


def test_the_last_layer_attends_from_first_tokens_alone(inputs, monkeypatch):
    asked = []

    def attend(query, *parts, **settings):
        asked.append(query.shape[2])
        return scaled_dot_product_attention(query, *parts, **settings)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", attend)
    run_encoder(build("bert").packed, inputs, first_only=True)
    different = [20, 13, 7, 1]
    assert asked == [*different, *different, 1, 1, 1, 1]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra"])
def test_predictions_in_bf16_on_a_cpu_add_up_in_bf16_and_training_does_not(architecture, inputs):
    packed = build(architecture).packed
    types = []
    packed.encoder.layer[-1].output.LayerNorm.register_forward_hook(
        lambda module, added, _: types.append(added[0].dtype)
    )
    exact = run_encoder(packed, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run_encoder(packed, inputs)
        with torch.no_grad():
            predicted = run_encoder(packed, inputs)
    # ELECTRA's embeddings end in a product, which autocast takes in bf16.
    trained = torch.bfloat16 if architecture == "electra" else torch.float32
    assert types == [torch.float32, trained, torch.bfloat16]
    assert predicted.dtype == torch.float32
    torch.testing.assert_close(predicted, exact, atol=5e-2, rtol=0.0)


@pytest.mark.parametrize("reach", [None, 9])
def test_predictions_in_bf16_attend_to_no_key_that_fills_up(reach):
    lengths = [70, 64, 30]
    draw = torch.Generator().manual_seed(4)
    # Keys unlike all queries: one that fills up, of zeros, would be the likest.
    query, key, value = (
        sign * torch.rand(2, sum(lengths), 16, generator=draw).bfloat16() for sign in (1, -4, 1)
    )
    where = Packing(torch.tensor(lengths), max(lengths), CPU, first_only=False)
    with torch.no_grad():
        found = PackedAttention(where, 1.0, 0.0, reach).on_cpu(query, key, value)
        exact = PackedAttention(where, 1.0, 0.0, reach).on_cpu(
            *(part.float() for part in (query, key, value))
        )
    torch.testing.assert_close(found.float(), exact, atol=2e-2, rtol=0.0)


@pytest.mark.parametrize("place", range(len(LENGTHS)))
def test_a_sequence_does_not_see_those_packed_with_it(encoders, inputs, place):
    alone = {name: value[place : place + 1, : LENGTHS[place]] for name, value in inputs.items()}
    together = run_encoder(encoders.packed, inputs)[place, : LENGTHS[place]]
    torch.testing.assert_close(
        run_encoder(encoders.packed, alone)[0], together, atol=1e-5, rtol=0.0
    )


def test_segments_are_packed_too(inputs):
    encoders = build("bert")
    segments = (torch.arange(max(LENGTHS)) > 3).long().expand_as(inputs["input_ids"])
    mask = inputs["attention_mask"].bool()
    padded, packed = (
        run_encoder(e, {**inputs, "token_type_ids": segments})[mask]
        for e in (encoders.padded, encoders.packed)
    )
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0.0)


def test_recomputed_activations_drop_the_same_and_give_the_same_gradients(inputs):
    plain, recomputed = build("bert").packed.train(), build("bert").packed.train()
    recompute_activations(recomputed)
    found = []
    for model in (plain, recomputed):
        use_fast_dropout(model)
        assert any(isinstance(m, FastDropout) and m.p == 0.1 for m in model.modules())
        torch.manual_seed(5)
        found.append(gradients(model, run_encoder(model, inputs, first_only=True)))
    assert_same_gradients(*found)


@pytest.mark.parametrize("recomputes", [False, True])
def test_weights_that_are_cast_once_for_two_passes_have_the_gradient_of_both(inputs, recomputes):
    halves = [{name: value[part] for name, value in inputs.items()} for part in ([0, 1], [2, 3, 4])]
    precision = Precision(
        "bf16", device=torch.device("cpu"), supports_bf16=True, supports_fp16=False
    )
    found = []
    for is_cast_once in (True, False):
        model = build("bert").packed.train()
        use_fast_dropout(model)
        if recomputes:
            recompute_activations(model)
        torch.manual_seed(5)
        with precision.autocast() if is_cast_once else nullcontext():
            for half in halves:
                with nullcontext() if is_cast_once else precision.autocast():
                    loss = run_encoder(model, half).float().square().sum()
                precision.backward(loss)
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    once, twice = found
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)
    assert "encoder.layer.0.attention.self.query.weight" in once


def test_attention_with_dropout_sees_what_attention_without_sees(inputs):
    # So rare a dropout that none happens.
    encoders = build("modernbert", attention_dropout=1e-9)
    mask = inputs["attention_mask"].bool()
    encoders.packed.train()
    padded, packed = (run_encoder(e, inputs)[mask] for e in (encoders.padded, encoders.packed))
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize(
    ("most", "passes"), [(1000, 1), (sum(LENGTHS), 1), (33, 2), (20, 4), (5, 5)]
)
def test_windows_are_encoded_in_turns_of_so_many_real_tokens(inputs, most, passes):
    packed = build("bert").packed
    whole = run_encoder(packed, inputs)
    rows = []
    packed.embeddings.register_forward_hook(lambda module, _, output: rows.append(output.shape[1]))
    torch.testing.assert_close(
        encode_rows(packed, inputs, max_tokens=most), whole, atol=1e-5, rtol=0.0
    )
    assert len(rows) == passes
    assert sum(rows) == sum(LENGTHS)
    assert max(rows) <= max(most, max(LENGTHS))


def test_packing_twice_is_packing_once(inputs):
    packed = build("bert").packed
    expected = run_encoder(packed, inputs, first_only=True)
    enable_packing(packed)
    assert torch.equal(run_encoder(packed, inputs, first_only=True), expected)


def test_adapters_are_packed_too(inputs):
    encoders = build("bert")
    mask = inputs["attention_mask"].bool()
    outputs = []
    for model in (encoders.padded, encoders.packed):
        torch.manual_seed(3)
        adapted = add_lora(model, rank=2, alpha=4.0, dropout=0.0, target_modules="all-linear")
        outputs.append(run_encoder(adapted.eval(), inputs)[mask])
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=0.0)


def test_what_a_gpu_does_in_fp32_agrees(encoders, inputs, monkeypatch):
    expected = run_encoder(encoders.packed, inputs)
    monkeypatch.setattr(PackedAttention, "on_cpu", PackedAttention.on_accelerator)
    found = run_encoder(encoders.packed, inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0.0)


def test_families_without_a_test_are_not_packed():
    config = AutoConfig.for_model("deberta-v2", **SMALL)
    known = build("bert").padded
    assert packing_obstacle([known]) is None
    assert packing_obstacle([known, SimpleNamespace(config=config)]) == (
        "deberta-v2 cannot be packed; bert, camembert, electra, modernbert, roberta, xlm-roberta can"
    )


@pytest.mark.gpu
def test_packed_and_padded_agree_on_a_gpu(encoders, inputs):
    mask = inputs["attention_mask"].bool()
    moved = {name: to_device(value, torch.device("cuda")) for name, value in inputs.items()}
    padded, packed = (
        run_encoder(e.cuda(), moved).cpu()[mask] for e in (encoders.padded, encoders.packed)
    )
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0.0)


WAYS = pytest.mark.parametrize(
    ("way", "device", "dtype", "tolerance"),
    [
        ("on_cpu", "cpu", torch.float32, 1e-5),
        ("on_cpu", "cpu", torch.bfloat16, 5e-2),
        ("on_accelerator", "cpu", torch.float32, 1e-5),
        pytest.param("on_accelerator", "cuda", torch.float32, 1e-4, marks=pytest.mark.gpu),
        pytest.param("on_accelerator", "cuda", torch.bfloat16, 5e-2, marks=pytest.mark.gpu),
        pytest.param("on_accelerator", "cuda", torch.float16, 1e-2, marks=pytest.mark.gpu),
    ],
)


def near_places(length, reach, device):
    """Bool `[length, length]`: which places see each other."""
    places = torch.arange(length, device=device)
    return (places[:, None] - places).abs() <= (length if reach is None else reach)


@pytest.mark.parametrize("reach", [None, 3])
@WAYS
def test_attention_is_that_of_each_sequence_alone(way, device, dtype, tolerance, reach):
    draw = torch.Generator().manual_seed(4)
    parts = [torch.randn(2, sum(LENGTHS), 16, generator=draw) for _ in range(4)]
    q, k, v, weights = (part.to(device, dtype) for part in parts)
    for part in (q, k, v):
        part.requires_grad_()
    # Wider than its longest sequence, as a part of a batch is.
    where = Packing(torch.tensor(LENGTHS), max(LENGTHS) + 5, q.device, first_only=False)
    found = getattr(PackedAttention(where, 0.25, 0.0, reach), way)(q, k, v)
    found_gradients = torch.autograd.grad((found.transpose(0, 1) * weights).sum(), (q, k, v))
    exact = [part.detach().double().requires_grad_() for part in (q, k, v)]
    outputs = []
    for pieces in zip(*(part.split(LENGTHS, dim=1) for part in exact), strict=True):
        near = near_places(pieces[0].shape[1], reach, device)
        outputs.append(scaled_dot_product_attention(*pieces, attn_mask=near, scale=0.25))
    expected = torch.cat(outputs, dim=1).transpose(0, 1)
    gradients_ = torch.autograd.grad((expected.transpose(0, 1) * weights).sum(), exact)
    for ours, theirs in zip((found, *found_gradients), (expected, *gradients_), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("reach", [None, 3])
@WAYS
def test_a_weight_is_dropped_in_both_directions_or_scaled(way, device, dtype, tolerance, reach):
    draw = torch.Generator().manual_seed(4)
    # Values that tell the places apart make the output the weights themselves.
    q, k, weights = (torch.randn(2, sum(LENGTHS), 32, generator=draw) for _ in range(3))
    v = torch.cat([torch.eye(length, 32) for length in LENGTHS]).expand(2, -1, -1)
    q, k, v, weights = (part.to(device, dtype) for part in (q, k, v, weights))
    for part in (q, k, v):
        part.requires_grad_()
    where = Packing(torch.tensor(LENGTHS), max(LENGTHS) + 5, q.device, first_only=False)
    attend = getattr(PackedAttention(where, 0.25, 0.25, reach), way)
    torch.manual_seed(6)
    found = attend(q, k, v)
    found_gradients = torch.autograd.grad((found.transpose(0, 1) * weights).sum(), (q, k, v))
    exact = [part.detach().double().requires_grad_() for part in (q, k, v)]
    outputs, n_kept, n_weights = [], 0, 0
    for (one, other, value), row in zip(
        zip(*(part.split(LENGTHS, dim=1) for part in exact), strict=True),
        found.transpose(0, 1).split(LENGTHS, dim=1),
        strict=True,
    ):
        length = one.shape[1]
        near = near_places(length, reach, device)
        kept = row.detach()[:, :, :length] > 0
        scores = (0.25 * one @ other.transpose(1, 2)).masked_fill(~near, float("-inf"))
        outputs.append(scores.softmax(dim=-1) * kept / 0.75 @ value)
        n_kept, n_weights = n_kept + int(kept.sum()), n_weights + 2 * int(near.sum())
    assert n_kept / n_weights == pytest.approx(0.75, abs=0.06)
    expected = torch.cat(outputs, dim=1).transpose(0, 1)
    gradients_ = torch.autograd.grad((expected.transpose(0, 1) * weights).sum(), exact)
    for ours, theirs in zip((found, *found_gradients), (expected, *gradients_), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=tolerance, rtol=tolerance)
    # The masks come from PyTorch's generator.
    again = attend(q, k, v)
    torch.manual_seed(6)
    assert torch.equal(attend(q, k, v), found)
    assert not torch.equal(again, found)
