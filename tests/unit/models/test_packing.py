import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModel

from psy_agents_noaug.models.encoder import add_lora, encode_rows, recompute_activations
from psy_agents_noaug.models.packing import _Attention, can_pack, enable_packing, run_encoder

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

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


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


def test_recomputed_activations_give_the_same_gradients(inputs):
    plain, recomputed = build("bert").packed.train(), build("bert").packed.train()
    recompute_activations(recomputed)
    for rows in (plain, recomputed):
        for module in rows.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    first, second = (
        gradients(m, run_encoder(m, inputs, first_only=True)) for m in (plain, recomputed)
    )
    assert_same_gradients(first, second)


def test_many_windows_are_encoded_in_turns(inputs):
    packed = build("bert").packed
    whole, turns = (encode_rows(packed, inputs, max_tokens=size) for size in (1000, 40))
    torch.testing.assert_close(turns, whole, atol=1e-5, rtol=0.0)


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
    monkeypatch.setattr(_Attention, "by_length", _Attention.on_cuda)
    found = run_encoder(encoders.packed, inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0.0)


def test_families_without_a_test_are_not_packed():
    config = AutoConfig.for_model("deberta-v2", **SMALL)
    assert not can_pack(SimpleNamespace(config=config))


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_and_padded_agree_on_a_gpu(encoders, inputs, dtype):
    mask = inputs["attention_mask"].bool()
    moved = {name: value.cuda() for name, value in inputs.items()}
    padded, packed = (
        run_encoder(e.to("cuda", dtype), moved).float().cpu()[mask]
        for e in (encoders.padded, encoders.packed)
    )
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(packed, padded, atol=tolerance, rtol=0.0)
