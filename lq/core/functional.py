"""The arithmetic of fake quantization: pure functions on tensors, one formula for training, conversion and export.

Mapping function (Krishnamoorthi, arXiv:1806.08342): ``q = clamp(round(x / scale) + zero_point, quant_min, quant_max)``
and back ``x = (q - zero_point) * scale``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = torch.finfo(torch.float32).eps

Scalar = float | Tensor


def affine_qparams(
    min_val: Tensor, max_val: Tensor, quant_min: int | Tensor, quant_max: int | Tensor, symmetric: bool | Tensor = False
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the grid that covers ``[min(0, min_val), max(0, max_val)]``; any shape, no loop.

    Affine: ``scale = (max - min) / (quant_max - quant_min)``, ``zero_point = quant_min - round(min / scale)``.
    Symmetric: ``scale = max(|min| / -quant_min, max / quant_max)``, ``zero_point = 0``. ``scale`` is at least
    ``EPS``, so that ``min == max == 0`` gives ``EPS``.

    Args:
        min_val: lowest values, float32, any shape.
        max_val: highest values, same shape.
        quant_min: lowest integer, a number or a tensor that broadcasts.
        quant_max: highest integer.
        symmetric: scheme, a flag or a boolean tensor that broadcasts.

    Returns:
        ``(scale, zero_point)``, both float32 of the same shape; ``zero_point`` holds integers.

    Example:
        >>> affine_qparams(torch.tensor([-1.0, 0.0]), torch.tensor([1.55, 0.0]), 0, 255)
        (tensor([1.0000e-02, 1.1921e-07]), tensor([100.,   0.]))
    """
    low, high = min_val.clamp(max=0.0), max_val.clamp(min=0.0)
    quant_min = torch.as_tensor(quant_min, dtype=low.dtype, device=low.device)
    quant_max = torch.as_tensor(quant_max, dtype=low.dtype, device=low.device)
    symmetric = torch.as_tensor(symmetric, device=low.device)
    affine_scale = (high - low) / (quant_max - quant_min)
    symmetric_scale = torch.maximum(low / quant_min.clamp(max=-1.0), high / quant_max.clamp(min=1.0))
    scale = torch.where(symmetric, symmetric_scale, affine_scale).clamp(min=EPS)
    zero_point = (quant_min - torch.round(low / scale)).clamp(quant_min, quant_max)
    return scale, torch.where(symmetric, torch.zeros_like(zero_point), zero_point)


def weight_scale(weight: Tensor, quant_max: int, per_channel: bool, channel_axis: int = 0) -> Tensor:
    """Symmetric scale of a weight, ``max|w| / quant_max``, at least ``EPS``.

    Args:
        weight: float tensor, any shape.
        quant_max: highest integer.
        per_channel: one scale per slice along ``channel_axis``, else one for all.
        channel_axis: the output channels' axis.

    Returns:
        float32 scales, shaped so that they broadcast against ``weight`` (0-dim if per tensor).

    Example:
        >>> weight_scale(torch.tensor([[1.27, -0.5], [0.0, 0.0]]), 127, per_channel=True)
        tensor([[1.0000e-02],
                [1.1921e-07]])
    """
    if weight.numel() == 0:
        raise ValueError(f"A weight of shape {tuple(weight.shape)} holds no numbers; it cannot be quantized.")
    dims = [d for d in range(weight.dim()) if d != channel_axis] if per_channel else None
    largest = torch.linalg.vector_norm(weight.detach().float(), torch.inf, dims, keepdim=per_channel)
    return (largest / quant_max).clamp(min=EPS)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Scalar, low: Scalar, high: Scalar) -> Tensor:
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        out = x.float().clamp(low, high) if x.dtype != torch.float32 else x.clamp(low, high)
        return out.mul_(1.0 / scale).round_().mul_(scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        return clipped_gradient(grad, x, ctx.low, ctx.high), None, None, None


def clipped_gradient(grad: Tensor, x: Tensor, low: Scalar, high: Scalar) -> Tensor:
    """``grad`` where ``low < x < high``, else 0: the clipped straight-through estimator."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return torch.where((x > low) & (x < high), grad, 0.0)
    return torch.ops.aten.hardtanh_backward(grad, x, low, high)


def fake_quantize(x: Tensor, scale: Scalar, low: Scalar, high: Scalar) -> Tensor:
    """Round ``x`` to the grid ``k * scale`` and saturate it to ``[low, high]``.

    ``low`` and ``high`` are ``(quant_min - zero_point) * scale`` and ``(quant_max - zero_point) * scale``, or tighter
    grid points where a ReLU is absorbed. The gradient is the clipped straight-through estimator: 1 where
    ``low < x < high``, 0 elsewhere (Jacob et al., arXiv:1712.05877). Computed in float32 whatever the dtype of ``x``.

    Args:
        x: floating tensor, any shape.
        scale: positive step of the grid, a float or a 0-dim float32 tensor on the device of ``x``.
        low: smallest value.
        high: largest value.

    Returns:
        tensor like ``x``.

    Example:
        >>> fake_quantize(torch.tensor([-1.0, 0.26, 0.9, 7.0]), 0.5, 0.0, 6.0)
        tensor([0.0000, 0.5000, 1.0000, 6.0000])
    """
    out: Tensor = _FakeQuantize.apply(x, scale, low, high)
    return out


class _FakeQuantizeWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        return (weight.float() / scale).round_().mul_(scale).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def fake_quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """Round a weight to its grid; the scale covers every value, so nothing saturates and the gradient is 1.

    Args:
        weight: float tensor.
        scale: from :func:`weight_scale`.

    Returns:
        tensor like ``weight``.

    Example:
        >>> w = torch.tensor([[1.27, -0.504]])
        >>> fake_quantize_weight(w, weight_scale(w, 127, per_channel=True))
        tensor([[ 1.2700, -0.5000]])
    """
    out: Tensor = _FakeQuantizeWeight.apply(weight, scale)
    return out


def quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """The integers of :func:`fake_quantize_weight`, as int8."""
    return (weight.float() / scale).round_().to(torch.int8)
