import pytest
import torch
from torch import nn
from transformers.trainer_utils import SchedulerType

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.training.optim import build_optimizer, build_scheduler, trainable

SETTINGS = {"learning_rate": 1e-3, "weight_decay": 0.1, "betas": (0.8, 0.95), "epsilon": 1e-6}
# They follow a metric or need arguments of their own.
REFUSED = {"reduce_lr_on_plateau", "warmup_stable_decay", "greedy"}
ALLOWED = sorted({kind.value for kind in SchedulerType} - REFUSED)


class Tiny(nn.Module):
    def __init__(self, encoder_name: str = "encoder") -> None:
        super().__init__()
        encoder = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
        self.add_module(encoder_name, encoder)
        self.head = nn.Linear(4, 2)


def groups(
    model: nn.Module, head_learning_rate: float | None = None, encoder_name: str = "encoder"
) -> dict:
    """Return the learning rate and the decay of each parameter by its name."""
    optimizer = build_optimizer(
        model,
        encoders=[model.get_submodule(encoder_name)],
        head_learning_rate=head_learning_rate,
        **SETTINGS,
    )
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return {n: found[id(p)] for n, p in model.named_parameters() if id(p) in found}


def test_matrices_decay_and_biases_and_norms_do_not():
    assert {name: decay for name, (_, decay) in groups(Tiny()).items()} == {
        "encoder.0.weight": 0.1,
        "encoder.1.weight": 0.1,
        "encoder.1.bias": 0.0,
        "encoder.2.weight": 0.0,
        "encoder.2.bias": 0.0,
        "head.weight": 0.1,
        "head.bias": 0.0,
    }


def test_the_head_learns_at_its_own_rate_where_one_is_given():
    assert {rate for rate, _ in groups(Tiny()).values()} == {1e-3}
    found = groups(Tiny(), head_learning_rate=5e-3)
    for name, (rate, decay) in found.items():
        assert rate == (5e-3 if name.startswith("head.") else 1e-3)
        assert decay == (0.1 if name.endswith(("0.weight", "1.weight", "head.weight")) else 0.0)


def test_an_encoder_of_any_name_learns_at_the_encoders_rate():
    found = groups(Tiny("backbone"), head_learning_rate=5e-3, encoder_name="backbone")
    assert {name for name, (rate, _) in found.items() if rate == 1e-3} == {
        name for name in found if name.startswith("backbone.")
    }
    assert len(found) == 7


def test_frozen_weights_are_left_out():
    model = Tiny()
    model.encoder.requires_grad_(False)
    assert set(groups(model)) == {"head.weight", "head.bias"}
    assert len(list(trainable(model))) == 2


def test_betas_and_epsilon_are_those_given():
    optimizer = build_optimizer(Tiny(), encoders=[], head_learning_rate=None, **SETTINGS)
    assert {(g["betas"], g["eps"]) for g in optimizer.param_groups} == {((0.8, 0.95), 1e-6)}


def rates(name: str, *, steps: int = 20, warmup_ratio: float = 0.25) -> list[float]:
    """Return the learning rate of each update, relative to the one given."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=0.5)
    scheduler = build_scheduler(name, optimizer, total_steps=steps, warmup_ratio=warmup_ratio)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0] / 0.5)
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", ALLOWED)
def test_every_allowed_schedule_builds_and_steps(name):
    found = rates(name)
    assert all(0.0 <= rate <= 1.0 for rate in found)
    assert max(found) == pytest.approx(1.0)


def test_linear_warms_up_and_falls_to_zero():
    found = rates("linear")
    assert found[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[5:] == pytest.approx([1 - k / 15 for k in range(15)])


@pytest.mark.parametrize("name", [*sorted(REFUSED), "lineal", ""])
def test_a_schedule_that_cannot_be_used_is_refused_with_the_list(name):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    with pytest.raises(ConfigError, match=r"must be one of linear, .*but is") as caught:
        build_scheduler(name, optimizer, total_steps=2, warmup_ratio=0.0)
    assert not [kind for kind in REFUSED if f"{kind}," in str(caught.value)]
