import math

import pytest
import torch
from torch import nn

from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.run.hardware import prepare_hardware
from psy_agents_noaug.training.precision import Precision, all_finite
from psy_agents_noaug.utils.reproducibility import get_device

CPU = torch.device("cpu")


def precision(mode: str, *, bf16: bool = False, fp16: bool = False) -> Precision:
    return Precision(mode, device=CPU, supports_bf16=bf16, supports_fp16=fp16)


@pytest.mark.parametrize(
    ("bf16", "fp16", "mode", "reason"),
    [
        (True, True, "bf16", "the hardware has fast bf16"),
        (True, False, "bf16", "the hardware has fast bf16"),
        (False, True, "off", "the hardware has no fast bf16; `training.amp=fp16` is faster on it"),
        (False, False, "off", "the hardware has no fast bf16"),
    ],
)
def test_auto_chooses_bf16_where_it_is_fast_and_never_fp16(bf16, fp16, mode, reason):
    chosen = precision("auto", bf16=bf16, fp16=fp16)
    assert (chosen.mode, chosen.reason) == (mode, reason)
    assert not chosen.skips_overflow


@pytest.mark.parametrize("choice", ["default", "optimized"])
def test_a_run_is_in_bf16_where_it_is_fast_unless_asked_otherwise(choice):
    config = load_train_config("criteria", ["training.device=cpu", f"training={choice}"])
    fast = get_device("cpu").supports_bf16
    assert prepare_hardware(config).precision.mode == ("bf16" if fast else "off")


@pytest.mark.parametrize("mode", ["off", "bf16", "fp16"])
def test_a_mode_that_was_asked_for_is_kept(mode):
    chosen = precision(mode, bf16=True, fp16=True)
    assert (chosen.mode, chosen.reason) == (mode, "as configured")
    assert chosen.skips_overflow == (mode == "fp16")


def test_fp16_without_cuda_is_refused():
    with pytest.raises(ConfigError, match=r"`training\.amp=fp16` needs a CUDA device"):
        precision("fp16", bf16=True)


def test_bf16_without_units_for_it_is_allowed_and_told():
    assert "slow" in precision("bf16").reason


@pytest.mark.parametrize(("mode", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_products_are_computed_in_the_mode_and_weights_stay_fp32(mode, dtype):
    torch.manual_seed(0)
    chosen, model = precision(mode, bf16=True), nn.Linear(4, 2)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with chosen.autocast():
        out = model(torch.ones(3, 4))
    assert out.dtype == dtype
    chosen.backward(out.float().sum())
    chosen.unscale(optimizer)
    assert torch.equal(model.weight.grad, torch.full((2, 4), 3.0))
    chosen.step(optimizer)
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(model.weight.detach(), before - 0.3)
    assert chosen.state_dict() == {}
    chosen.load_state_dict({})


def test_going_back_between_forward_passes_is_not_autocast():
    chosen, model = precision("bf16", bf16=True), nn.Linear(4, 2)
    seen = []
    with chosen.autocast():
        for _ in range(2):
            out = model(torch.ones(3, 4))
            out.register_hook(lambda _: seen.append(torch.is_autocast_enabled("cpu")))
            chosen.backward(out.float().sum())
        assert torch.is_autocast_enabled("cpu")
    assert seen == [False, False]
    assert torch.equal(model.weight.grad, torch.full((2, 4), 6.0))


@pytest.mark.faults("fp16 gradients overflow", "the update is skipped and counted")
def test_fp16_gradients_are_scaled_and_an_overflow_skips_the_update():
    chosen, model = precision("fp16", fp16=True), nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scale = chosen.state_dict()["scale"]
    before = model.weight.detach().clone()
    chosen.backward(model(torch.ones(1, 2)).sum())
    assert torch.equal(model.weight.grad, torch.full((1, 2), scale))
    chosen.unscale(optimizer)
    assert torch.equal(model.weight.grad, torch.ones(1, 2))
    model.weight.grad.fill_(math.inf)
    other = precision("fp16", fp16=True)
    optimizer.zero_grad()
    other.backward(model(torch.full((1, 2), math.inf)).sum())
    other.unscale(optimizer)
    other.step(optimizer)
    assert torch.equal(model.weight.detach(), before)
    assert other.state_dict()["scale"] == scale / 2
    assert (chosen.skipped_updates, other.skipped_updates) == (0, 1)
    chosen.load_state_dict(other.state_dict())
    assert chosen.state_dict() == other.state_dict()
    assert chosen.skipped_updates == 1
    of_an_earlier_version = other.state_dict()
    del of_an_earlier_version["skipped_updates"]
    chosen.load_state_dict(of_an_earlier_version)
    assert chosen.skipped_updates == 0


@pytest.mark.parametrize(
    ("values", "finite"),
    [([1.0, -1e38], True), ([math.inf], False), ([0.0, math.nan], False), ([], True)],
)
def test_all_finite_sees_every_element(values, finite):
    assert all_finite([torch.zeros(2), torch.tensor(values)]) is finite
    assert all_finite([torch.tensor(values), torch.zeros(2)]) is finite
