"""Learned step size quantization: the scale is a parameter (Esser et al., arXiv:1902.08153)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lq.core.functional import EPS, Scalar


class _LearnedFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Scalar, high: Scalar, gradient_scale: Scalar) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.low, ctx.high, ctx.gradient_scale = low, high, gradient_scale
        bounds: Any = low, high
        return (x.float() * scale.reciprocal()).round_().clamp_(*bounds).mul_(scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        bounds: Any = ctx.low, ctx.high
        grad32 = grad.float()
        real = x.float() * scale.reciprocal()
        integer = real.round().clamp_(*bounds)
        # Rounding moves a value by at most half a step; more than that is saturation.
        inside = (real - integer).abs() <= 0.5
        slope = torch.where(inside, integer - real, integer)
        grad_scale = None
        if ctx.needs_input_grad[1]:
            grad_scale = (grad32 * slope).sum_to_size(scale.shape) * ctx.gradient_scale
        return torch.where(inside, grad, 0.0), grad_scale, None, None, None


def learned_fake_quantize(x: Tensor, scale: Tensor, low: Scalar, high: Scalar) -> Tensor:
    r"""Round ``x`` to multiples of a learned ``scale`` and saturate.

    .. math:: \hat x = s \cdot \text{clamp}(\text{round}(x / s), l, h), \qquad
        \frac{\partial \hat x}{\partial s} = \begin{cases} \text{round}(x/s) - x/s & \text{inside} \\ l \text{ or } h
        & \text{outside} \end{cases}

    The gradient of the scale is multiplied by :math:`1 / \sqrt{N h}`, where N is the number of values that share one
    scale, as in section 2.2 of the paper; that of ``x`` passes inside and is 0 outside.

    Args:
        x: floating tensor, any shape.
        scale: float32, positive, broadcasts against ``x``.
        low: lowest multiple.
        high: highest multiple, positive.

    Returns:
        tensor like ``x``.

    Source:
        Esser et al., "Learned Step Size Quantization", https://arxiv.org/abs/1902.08153.

    Example:
        >>> scale = torch.tensor(0.5, requires_grad=True)
        >>> out = learned_fake_quantize(torch.tensor([0.6, 9.0]), scale, 0, 4)
        >>> out.sum().backward()
        >>> out.detach(), scale.grad  # ((1 - 1.2) + 4) / sqrt(2 * 4)
        (tensor([0.5000, 2.0000]), tensor(1.3435))
    """
    shared = x.numel() / max(scale.numel(), 1)
    gradient_scale = (shared * high) ** -0.5
    out: Tensor = _LearnedFakeQuantize.apply(x, scale, low, high, gradient_scale)
    return out


def started_scale(learned: Tensor, start: Scalar) -> Tensor:
    """The scale that a learned one stands for: at least ``EPS``, and ``start`` while it is 0, which is to say not set.

    Args:
        learned: the parameter; gets no gradient where it is not what is returned.
        start: where it will start, a number or a tensor that broadcasts.

    Returns:
        float32 tensor of the shape of ``learned``.

    Example:
        >>> started_scale(torch.tensor([0.0, 0.25, -1.0]), 0.5)
        tensor([5.0000e-01, 2.5000e-01, 1.1921e-07])
    """
    # No ``clamp``, which would keep ``learned`` itself for the backward pass, and it may be set before that.
    return torch.where(learned == 0, start, torch.where(learned < EPS, EPS, learned))
