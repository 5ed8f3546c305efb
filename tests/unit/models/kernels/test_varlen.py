"""The kernels for packed rows on a GPU, as far as tensors without data can show them."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModel

from psy_agents_noaug.models.encoder import encode_rows
from psy_agents_noaug.models.execution import enable_packing, run_encoder
from psy_agents_noaug.models.kernels import varlen
from psy_agents_noaug.models.kernels.attention import PackedAttention, Packing
from psy_agents_noaug.utils.host import to_device

META = torch.device("meta")
T4, V100, A100, H100 = (7, 5), (7, 0), (8, 0), (9, 0)
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
LENGTHS = [5, 3, 3]
SMALL = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "attention_dropout": 0.1,
    "global_attn_every_n_layers": 2,
    "local_attention": 8,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}


class Calls(TorchDispatchMode):
    """Notes each call of an attention operator: its name, and its arguments by their names."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if "attention" in name or "attn" in name:
            named = zip((one.name for one in func._schema.arguments), args, strict=False)
            given = self.seen[name] = {**dict(named), **(kwargs or {})}
            if name == "_efficient_attention_backward":
                # PyTorch's function for tensors without data takes other arguments than the operator.
                parts = (given["query"], given["key"], given["value"])
                return *map(torch.empty_like, parts), torch.empty(0, device=META)
        return func(*args, **(kwargs or {}))


def heads(dtype=BF16, width=8):
    """Queries, keys and values `[h, N, d]`."""
    shape = (2, sum(LENGTHS), width)
    return [torch.empty(shape, dtype=dtype, device=META, requires_grad=True) for _ in range(3)]


@pytest.fixture
def attend(monkeypatch):
    """Return a function that attends by one of the kernels, forward and backward, and its calls."""

    def attend(kernel, *, dropout=0.0, reach=None, dtype=BF16):
        monkeypatch.setattr(varlen, "kernel_for", lambda query, **_: kernel)
        where = Packing(torch.tensor(LENGTHS), 9, META, first_only=False)
        parts = heads(dtype)
        with Calls() as calls:
            output = PackedAttention(where, 0.5, dropout, reach).on_accelerator(*parts)
            gradients = torch.autograd.grad(output.sum(), parts)
        assert (output.shape, output.dtype) == ((sum(LENGTHS), 2, 8), dtype)
        assert [g.shape for g in gradients] == [part.shape for part in parts]
        return SimpleNamespace(calls=calls.seen, where=where)

    return attend


@pytest.fixture(params=["bert", "roberta", "modernbert"])
def encoder_without_data(request, monkeypatch):
    """Return a function from a kernel to a packed encoder and a batch. Reading their values raises."""
    config = AutoConfig.for_model(request.param, **SMALL)
    model = AutoModel.from_config(config)
    enable_packing(model)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    batch = {"input_ids": mask.long() * 7, "attention_mask": mask.long()}

    def build(kernel):
        monkeypatch.setattr(varlen, "kernel_for", lambda query, **_: kernel)
        moved = {name: to_device(value, META) for name, value in batch.items()}
        return model.to(META).train(), moved

    return build


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "window", "dropout", "kernel"),
    [
        (A100, BF16, 64, False, False, "flash"),
        (A100, FP16, 32, True, True, "flash"),
        (H100, BF16, 64, True, False, "flash"),
        (A100, FP32, 64, False, True, "memory_efficient"),
        (A100, FP32, 64, True, True, "padded"),
        (T4, FP16, 64, False, True, "memory_efficient"),
        (T4, FP32, 64, False, False, "memory_efficient"),
        (T4, FP16, 64, True, False, "padded"),
        (T4, BF16, 64, False, False, "padded"),
        (V100, FP16, 32, False, True, "memory_efficient"),
        (A100, BF16, 256, False, True, "memory_efficient"),
        (A100, BF16, 256, True, True, "padded"),
        (A100, BF16, 60, False, False, "padded"),
        (A100, torch.float64, 64, False, False, "padded"),
        (None, BF16, 64, False, False, "padded"),
    ],
)
def test_the_kernel_is_the_fastest_that_can_do_it(
    capability, dtype, width, window, dropout, kernel
):
    asked = {
        "capability": capability,
        "dtype": dtype,
        "width": width,
        "has_window": window,
        "has_dropout": dropout,
    }
    assert varlen.choose_kernel(**asked, has_operators=True) == kernel
    public = "flash" if kernel == "flash" and not dropout else "padded"
    assert varlen.choose_kernel(**asked, has_operators=False) == public


def test_the_kernel_suits_the_gpu_of_the_queries(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: (A100, T4)[device.index]
    )
    found = [
        varlen.kernel_for(
            SimpleNamespace(device=torch.device(device), dtype=FP16, shape=(2, 7, 32)),
            has_window=False,
            has_dropout=True,
        )
        for device in ("cuda:0", "cuda:1", "cpu", "mps")
    ]
    assert found == ["flash", "memory_efficient", "padded", "padded"]


@pytest.mark.parametrize("reach", [None, 3])
def test_flash_attention_gets_dropout_and_window_in_both_directions(attend, reach):
    found = attend("flash", dropout=0.1, reach=reach)
    side = -1 if reach is None else reach
    settings = {
        "max_q": 5,
        "max_k": 5,
        "dropout_p": 0.1,
        "is_causal": False,
        "scale": 0.5,
        "window_size_left": side,
        "window_size_right": side,
    }
    for direction in ("forward", "backward"):
        given = found.calls[f"_flash_attention_{direction}"]
        assert {name: given[name] for name in settings} == settings
        assert given["cum_seq_q"] is given["cum_seq_k"]
        assert (given["cum_seq_q"].shape, given["cum_seq_q"].dtype) == ((4,), torch.int32)
        assert given["query"].shape == (sum(LENGTHS), 2, 8)


@pytest.mark.parametrize(("reach", "window"), [(None, [-1, -1]), (3, [3, 3])])
def test_flash_attention_without_dropout_is_the_public_function(attend, reach, window):
    found = attend("flash", reach=reach)
    (given,) = (given for name, given in found.calls.items() if name == "_varlen_attn")
    assert (given["max_q"], given["scale"], given["window_size"]) == (5, 0.5, window)
    assert "_flash_attention_forward" not in found.calls


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_memory_efficient_attention_gets_dropout_in_both_directions(attend, dropout, dtype):
    found = attend("memory_efficient", dropout=dropout, dtype=dtype)
    settings = {
        "bias": None,
        "max_seqlen_q": 5,
        "max_seqlen_k": 5,
        "dropout_p": dropout,
        "custom_mask_type": 0,
        "scale": 0.5,
    }
    for direction in ("forward", "backward"):
        given = found.calls[f"_efficient_attention_{direction}"]
        assert {name: given[name] for name in settings} == settings
        assert given["cu_seqlens_q"].shape == given["cu_seqlens_k"].shape == (4,)
        assert given["cu_seqlens_q"].dtype == torch.int32
        assert given["query"].shape == (1, sum(LENGTHS), 2, 8)
    assert found.calls["_efficient_attention_forward"]["compute_log_sumexp"] is True


def test_without_gradients_no_logarithms_are_kept():
    rows = torch.empty(4, 2, 8, device=META)
    bounds = torch.empty(3, dtype=torch.int32, device=META)
    with Calls() as calls:
        varlen.memory_efficient(
            rows, rows, rows, bounds=bounds, longest=2, scaling=1.0, dropout=0.0
        )
    given = calls.seen["_efficient_attention_forward"]
    assert not given.get("compute_log_sumexp", False)


def test_this_pytorch_has_the_operators():
    assert varlen.has_operators()


@pytest.mark.parametrize("name", ["flash", "memory_efficient"])
@pytest.mark.parametrize("error", [TypeError, RuntimeError, AttributeError])
def test_another_pytorch_whose_operators_differ_is_padded(monkeypatch, name, error):
    def refuse(*_, **__):
        raise error("an argument is unknown")

    monkeypatch.setattr(varlen, name, refuse)
    varlen.has_operators.cache_clear()
    try:
        assert not varlen.has_operators()
    finally:
        varlen.has_operators.cache_clear()


@pytest.mark.parametrize("kernel", ["flash", "memory_efficient", "padded"])
@pytest.mark.parametrize("first_only", [False, True])
def test_a_packed_pass_reads_nothing_from_the_device(encoder_without_data, kernel, first_only):
    model, inputs = encoder_without_data(kernel)
    with Calls():
        hidden = run_encoder(model, inputs, first_only=first_only)
        hidden.sum().backward()
    assert hidden.shape == (len(LENGTHS), 1 if first_only else max(LENGTHS), 16)


@pytest.mark.parametrize("kernel", ["flash", "memory_efficient", "padded"])
def test_windows_in_turns_read_nothing_from_the_device(encoder_without_data, kernel):
    model, inputs = encoder_without_data(kernel)
    with torch.no_grad():
        hidden = encode_rows(model, inputs, max_tokens=6)
    assert hidden.shape == (len(LENGTHS), max(LENGTHS), 16)


def test_without_its_copy_on_the_host_the_device_is_read(encoder_without_data):
    model, inputs = encoder_without_data("flash")
    inputs["attention_mask"] = inputs["attention_mask"].clone()
    with pytest.raises(NotImplementedError, match="meta"):
        run_encoder(model, inputs)
