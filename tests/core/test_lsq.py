import pytest
import torch
from torch import Tensor

from lq.core.lsq import LearnedScale, learned_fake_quantize
from tests.core.second_derivatives import assert_same_second_derivatives


def twin(x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """The formulas of the paper, composed from differentiable pieces."""
    ratio = x / scale
    clipped = ratio.clamp(low - 0.5, high + 0.5)  # round(ratio) in [low, high] passes the gradient
    rounded = ratio.round().clamp(low, high)
    inside = (ratio.round() >= low) & (ratio.round() <= high)
    return torch.where(inside, ratio + (rounded - ratio).detach(), rounded.detach() + 0 * clipped) * scale


@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-7.0, 7.0), (-128.0, 127.0), (-3.0, 12.0)])
@pytest.mark.parametrize("per_channel", [False, True])
def test_values_and_gradients_are_those_of_the_paper(low, high, per_channel):
    torch.manual_seed(0)
    x = torch.randn(5, 4, 3, 3) * 2
    scale = torch.rand(4, 1, 1, 1).add(0.5).div(high) if per_channel else torch.tensor(1.5 / high)
    x = x.transpose(0, 1).contiguous() if per_channel else x
    weight = torch.randn_like(x)
    a, s = x.clone().requires_grad_(), scale.clone().requires_grad_()
    b, t = x.clone().requires_grad_(), scale.clone().requires_grad_()
    fast, slow = learned_fake_quantize(a, s, low, high), twin(b, t, low, high)
    (fast * weight).sum().backward()
    (slow * weight).sum().backward()
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(a.grad, b.grad)
    # sums of up to 180 products in float32, in another order
    torch.testing.assert_close(s.grad, t.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_descending_the_gradient_finds_a_better_scale_in_any_unit(unit: float):
    torch.manual_seed(0)
    x = torch.randn(4096) * unit
    learned = LearnedScale(torch.zeros(()))
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.5)

    def noise() -> Tensor:
        return (learned_fake_quantize(x, learned(unit), -7, 7) - x).pow(2).mean() / unit**2

    before = noise().item()
    for _ in range(200):
        optimizer.zero_grad()
        noise().backward()
        optimizer.step()
    assert noise().item() < before / 5
    assert learned(unit).item() == pytest.approx(0.335 * unit, rel=0.15)  # of a normal distribution on 15 levels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_their_dtype_and_finite_gradients(dtype):
    x = torch.randn(64, dtype=dtype, requires_grad=True)
    scale = torch.tensor(0.02, requires_grad=True)
    out = learned_fake_quantize(x, scale, 0, 255)
    out.sum().backward()
    assert out.dtype == dtype
    assert scale.grad.dtype == torch.float32
    assert torch.isfinite(scale.grad)
    assert torch.isfinite(x.grad).all()


def test_a_scale_is_positive_whatever_the_parameter_is():
    learned = LearnedScale(torch.zeros(5))
    with torch.no_grad():
        learned.log_factor.copy_(torch.tensor([-1e30, -100.0, 0.0, 100.0, 1e30]))
    scale = learned(0.5)
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    assert (scale.diff() >= 0).all()
    scale.sum().backward()
    torch.testing.assert_close(learned.log_factor.grad, scale.detach())  # it comes back from wherever it is


def test_what_has_no_range_teaches_nothing():
    learned, scale = LearnedScale(torch.zeros(())), 2.0**-64
    out = learned_fake_quantize(torch.tensor([3.0, 9.0], requires_grad=True), learned(scale), 0.0, 6.0 / scale)
    out.sum().backward()
    assert out.tolist() == [3.0, 6.0]
    assert learned.log_factor.grad == 0


def test_it_may_be_set_between_forward_and_backward():
    learned, observed = LearnedScale(torch.zeros(()), searched=True), torch.tensor(0.5)
    scale = learned(observed)
    learned.begin(observed, observed / 2)
    observed.fill_(7.0)
    scale.backward()
    assert learned.log_factor.grad == 0.5


def test_a_cast_leaves_where_it_starts_in_float32():
    learned = LearnedScale(torch.zeros(()), searched=True)
    learned.begin(torch.tensor(1.0), torch.tensor(0.1234567))
    assert learned.bfloat16()(torch.tensor(1.0)).item() == pytest.approx(0.1234567, rel=1e-6)


def test_a_step_goes_against_the_sign_of_a_finite_gradient_and_leaves_none():
    learned = LearnedScale(torch.zeros(5))
    learned.log_factor.grad = torch.tensor([1e-9, -3e4, 0.0, float("nan"), float("inf")])
    learned.step(0.01)
    assert learned.log_factor.tolist() == pytest.approx([-0.01, 0.01, 0.0, 0.0, 0.0])
    assert learned.log_factor.grad.tolist() == [0.0] * 5
    learned.step(0.01)
    assert learned.log_factor.tolist() == pytest.approx([-0.01, 0.01, 0.0, 0.0, 0.0])


# ---- second derivatives -----------------------------------------------------------------------------------------


def test_gradients_have_gradients() -> None:
    x, scale = torch.randn(6, 5), torch.rand(6, 1) / 5 + 0.1
    low, high = -4.0, 7.0
    assert_same_second_derivatives(
        lambda x, s: learned_fake_quantize(x, s, low, high), lambda x, s: twin(x, s, low, high), x, scale
    )


def test_gradients_of_the_factor_have_gradients() -> None:
    def learned(log_factor: Tensor) -> Tensor:
        scale = LearnedScale(torch.zeros(3))
        del scale.log_factor
        scale.log_factor = log_factor
        return scale(0.5)

    assert_same_second_derivatives(learned, lambda log_factor: 0.5 * log_factor.exp(), torch.randn(3))
