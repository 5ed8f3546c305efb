import pytest
import torch
from torch import nn
from torch.nn import functional

from psy_agents_noaug.models.kernels.attention import attention_with_dropout
from psy_agents_noaug.models.kernels.dropout import (
    FastDropout,
    draw_mask,
    keep_share,
    use_fast_dropout,
)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_asked_share_is_dropped(probability):
    torch.manual_seed(0)
    kept = draw_mask(torch.Size((400, 1001)), probability).neg().double()
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.mean().item() == pytest.approx(1 - probability, abs=0.003)
    assert keep_share(probability) == pytest.approx(1 - probability, abs=2**-16)
    # Independent of its neighbours in a word and in a column.
    for shift in range(1, 5):
        both = (kept[:, shift:] * kept[:, :-shift]).mean().item()
        assert both == pytest.approx((1 - probability) ** 2, abs=0.005)


def test_the_seed_decides_what_is_dropped():
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return draw_mask(torch.Size((3, 5)), 0.5)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_two_draws_differ():
    torch.manual_seed(0)
    shape = torch.Size((100,))
    assert not torch.equal(draw_mask(shape, 0.5), draw_mask(shape, 0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_kept_values_are_scaled_and_dropped_ones_have_no_gradient(dtype):
    torch.manual_seed(0)
    values = torch.rand(40, 50, dtype=dtype).add_(0.1).t().requires_grad_()
    output = FastDropout(0.25)(values)
    output.sum().backward()
    kept = output != 0
    assert 0.7 < kept.float().mean().item() < 0.8
    torch.testing.assert_close(output[kept], values[kept] / 0.75)
    torch.testing.assert_close(values.grad, (kept / 0.75).to(dtype))


def test_a_dropped_infinity_is_nothing():
    output = FastDropout(0.5)(torch.full((1000,), float("inf")))
    assert set(output.tolist()) == {0.0, float("inf")}


def test_hardly_anything_is_left_of_a_dropout_next_to_one():
    kept = draw_mask(torch.Size((1000, 1000)), 0.9999999).neg().sum().item()
    assert 0 < kept < 100
    assert keep_share(0.9999999) == 2**-16


def test_nothing_is_dropped_in_evaluation():
    values = torch.rand(4, 4)
    assert torch.equal(FastDropout(0.9).eval()(values), values)


def test_every_dropout_of_a_model_is_replaced_at_its_rate():
    model = nn.Sequential(nn.Dropout(0.3), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)))
    use_fast_dropout(model)
    assert [type(model[0]), type(model[1][1])] == [FastDropout, FastDropout]
    assert [model[0].p, model[1][1].p] == [0.3, 0.0]


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return [torch.randn(2, 3, 7, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]


@pytest.fixture
def allowed():
    places = torch.arange(7)
    return (places[:, None] - places).abs() <= 2


def with_seed(*parts, probability, allowed=None, counts=None, seed=5):
    torch.manual_seed(seed)
    return attention_with_dropout(
        *parts, probability=probability, scaling=0.5, allowed=allowed, counts=counts
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("counts", [None, [7, 4]])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_drops_weights_after_the_softmax(
    parts, allowed, masked, counts, dtype, tolerance
):
    parts = [part.detach().to(dtype).requires_grad_() for part in parts]
    query, key, value = (part.detach().double().requires_grad_() for part in parts)
    torch.manual_seed(5)
    keep = draw_mask(torch.Size((2, 3, 7, 7)), 0.4).neg() / keep_share(0.4)
    real = torch.arange(7) < torch.tensor(counts or [7, 7])[:, None]
    seen = real[:, None, None] & (allowed if masked else True)
    # What padding sees is nobody's business, but it must see something.
    seen = seen | ~real[:, None, :, None]
    scores = (query @ key.transpose(-1, -2) * 0.5).masked_fill(~seen, float("-inf"))
    expected = (scores.softmax(-1) * keep) @ value
    found = with_seed(*parts, probability=0.4, allowed=allowed if masked else None, counts=counts)
    weights = torch.randn(2, 3, 7, 4).to(dtype) * real[:, None, :, None]
    wanted = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    gradients = torch.autograd.grad((found * weights).sum(), parts)
    shown = real[:, None, :, None].expand_as(found)
    pairs = [(found[shown], expected[shown]), *zip(gradients, wanted, strict=True)]
    for ours, exact in pairs:
        assert (ours - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("probability", [0.0, 0.1])
def test_what_is_not_a_number_stays_so(probability):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 1, 64, 4).bfloat16() for _ in range(3))
    query[0, 0, 3, 0] = float("inf")
    found = with_seed(query, key, value, probability=probability)
    assert found[0, 0, 3].isnan().all()
    assert found[0, 0, :3].isfinite().all()


@pytest.mark.parametrize("probability", [0.0, 1e-9])
def test_attention_without_dropping_is_plain_attention(parts, probability):
    plain = functional.scaled_dot_product_attention(*parts, scale=0.5)
    found = with_seed(*parts, probability=probability)
    torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-5)
    weights = torch.randn(found.shape, dtype=torch.float64)
    expected = torch.autograd.grad((plain * weights).sum(), parts)
    gradients = torch.autograd.grad((found * weights).sum(), parts)
    torch.testing.assert_close(gradients, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("n_queries", [1, 7])
def test_padding_is_not_attended_to(parts, n_queries):
    query, key, value = parts
    counts = [7, 4]
    found = with_seed(query[:, :, :n_queries], key, value, probability=0.0, counts=counts)
    real = [found[place, :, :count] for place, count in enumerate(counts)]
    torch.cat(real, dim=1).sum().backward()
    for place, count in enumerate(counts):
        alone = functional.scaled_dot_product_attention(
            query[place, :, :n_queries], key[place, :, :count], value[place, :, :count], scale=0.5
        )
        torch.testing.assert_close(real[place], alone[:, :count], atol=1e-6, rtol=1e-5)
        assert not key.grad[place, :, count:].any()
        assert not value.grad[place, :, count:].any()
        assert value.grad[place, :, :count].all()
