import pytest
import torch
from torch import Tensor

from lq.core.lsq import learned_fake_quantize


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
    shared = x.numel() / scale.numel()
    # sums of up to 180 products in float32, in another order
    torch.testing.assert_close(s.grad, t.grad / (shared * high) ** 0.5, atol=1e-5, rtol=1e-4)


def test_descending_the_gradient_finds_a_better_scale():
    torch.manual_seed(0)
    x = torch.randn(4096)
    scale = torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.SGD([scale], lr=0.05)

    def noise() -> Tensor:
        return (learned_fake_quantize(x, scale, -7, 7) - x).pow(2).mean()

    before = noise().item()
    for _ in range(200):
        optimizer.zero_grad()
        (noise() * 100).backward()
        optimizer.step()
    assert noise().item() < before / 5


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


def test_a_scale_that_went_negative_stays_usable():
    x = torch.randn(8)
    out = learned_fake_quantize(x, torch.tensor(-1.0), -7, 7)
    assert torch.isfinite(out).all()
