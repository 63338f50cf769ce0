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
    with torch.no_grad():
        w = weight.detach().float()
        if per_channel:
            dims = [d for d in range(w.dim()) if d != channel_axis]
            largest = torch.maximum(w.amax(dims, keepdim=True), -w.amin(dims, keepdim=True))
        else:
            largest = torch.maximum(w.amax(), -w.amin())
        return (largest / quant_max).clamp(min=EPS)


# In training, values that saturate stay this much (relative) outside the grid, so that the backward pass can tell
# them from the values that round to its ends without keeping a mask or a second copy of the tensor.
_MARK, _MARK_AT_ZERO = 1e-6, 1e-20


def _marked(bound: Scalar, sign: float, share: float) -> Scalar:
    if isinstance(bound, Tensor):
        return bound + sign * share * torch.clamp(bound.abs() * _MARK, min=_MARK_AT_ZERO)
    return bound + sign * share * max(abs(bound) * _MARK, _MARK_AT_ZERO)


class _FakeQuantize(torch.autograd.Function):
    """Float32, marking saturated values; one fresh tensor, or none if it works in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Scalar, low: Scalar, high: Scalar, inplace: bool) -> Tensor:
        inverse = 1.0 / scale
        if inplace:
            ctx.mark_dirty(x)
            out = x.mul_(inverse)
        else:
            out = x * inverse
        bounds: Any = _marked(low, -1.0, 1.0), _marked(high, 1.0, 1.0)
        out.round_().clamp_(*bounds).mul_(scale)
        ctx.save_for_backward(out)
        ctx.ends = _marked(low, -1.0, 0.5) * scale, _marked(high, 1.0, 0.5) * scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (out,) = ctx.saved_tensors
        return _inside(grad, out, *ctx.ends), None, None, None, None


class _FakeQuantizeAnyDtype(torch.autograd.Function):
    """Computes in float32 whatever the dtype, and keeps the input for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Scalar, low: Scalar, high: Scalar) -> Tensor:
        ctx.save_for_backward(x)
        ctx.ends = (low - 0.5) * scale, (high + 0.5) * scale
        return _exact(x, scale, low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return _inside(grad, x, *ctx.ends), None, None, None


def _exact(x: Tensor, scale: Scalar, low: Scalar, high: Scalar) -> Tensor:
    bounds: Any = low, high
    return (x.float() * (1.0 / scale)).round_().clamp_(*bounds).mul_(scale).to(x.dtype)


def _inside(grad: Tensor, x: Tensor, low: Scalar, high: Scalar) -> Tensor:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        # One-dimensional, so that they are compared in float32 and not in the dtype of ``x``.
        low, high = (torch.as_tensor(end, device=x.device).reshape(1) for end in (low, high))
        return torch.where((x > low) & (x < high), grad, 0.0)
    out: Tensor = torch.ops.aten.hardtanh_backward(grad, x, low, high)
    return out


def fake_quantize(x: Tensor, scale: Scalar, low: Scalar, high: Scalar, inplace: bool = False) -> Tensor:
    """Round ``x`` to multiples of ``scale`` and saturate: ``clamp(round(x / scale), low, high) * scale``.

    ``low`` and ``high`` are ``quant_min - zero_point`` and ``quant_max - zero_point``, or a tighter ``low`` where a
    ReLU is absorbed. The gradient is the clipped straight-through estimator (Jacob et al., arXiv:1712.05877) in
    PyTorch's convention: 1 where ``low <= round(x / scale) <= high``, 0 elsewhere (exactly so in float32; elsewhere a
    value right on that edge may fall on either side). Computed in float32 whatever the dtype of ``x``. When a gradient
    is wanted, saturated values come out a millionth beyond the end of the grid.

    Args:
        x: floating tensor, any shape.
        scale: positive step of the grid, a float or a 0-dim float32 tensor on the device of ``x``.
        low: lowest multiple, integer-valued.
        high: highest multiple, integer-valued.
        inplace: overwrite ``x``, which must be float32 and needed by nobody else.

    Returns:
        tensor like ``x``.

    Example:
        >>> fake_quantize(torch.tensor([-1.0, 0.26, 0.9, 7.0]), 0.5, 0.0, 12.0)
        tensor([0.0000, 0.5000, 1.0000, 6.0000])
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        if inplace and x.dtype == torch.float32:
            bounds: Any = low, high
            return x.mul_(1.0 / scale).round_().clamp_(*bounds).mul_(scale)
        return _exact(x, scale, low, high)
    if x.dtype != torch.float32:
        out: Tensor = _FakeQuantizeAnyDtype.apply(x, scale, low, high)
    else:
        out = _FakeQuantize.apply(x, scale, low, high, inplace and not torch.compiler.is_compiling())
    return out


def round_weight(weight: Tensor, scale: Tensor, out: Tensor | None = None) -> Tensor:
    """The integers of a weight, as float32."""
    return torch.mul(weight.float(), scale.reciprocal(), out=out).round_()


class _FakeQuantizeWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, factor: Tensor | None, buffer: Tensor | None) -> Tensor:
        # Through ``data``: a layer that is called twice writes the same values twice, which must not count as a change.
        out = round_weight(weight, scale, None if buffer is None else buffer.data)
        out.mul_(scale if factor is None else scale * factor)
        # The weight is kept for the sake of its version: changing it before the backward pass is an error.
        ctx.save_for_backward(weight, *((out, factor) if factor is not None else ()))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *folded = ctx.saved_tensors
        if not folded:
            return grad.to(weight.dtype), None, None, None
        out, factor = folded
        grad_factor = None
        if ctx.needs_input_grad[2]:
            grad_factor = _sum_of_products(out, grad, factor) / factor
        # In place: a convolution makes this gradient for this function alone, and a copy costs more than the rest.
        return grad.mul_(factor).to(weight.dtype), None, grad_factor, None


def _sum_of_products(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """``(a * b).sum_to_size(like.shape)`` without the product in memory, where the channels come first."""
    if like.numel() == like.shape[0]:
        summed: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
        return summed.view_as(like)
    return (a * b).sum_to_size(like.shape)


def fake_quantize_weight(
    weight: Tensor, scale: Tensor, factor: Tensor | None = None, buffer: Tensor | None = None
) -> Tensor:
    """Round a weight to its grid, and multiply by a factor per channel if given: ``round(w / scale) * scale * factor``.

    The scale covers every value, so nothing saturates and the gradient passes straight through.

    Args:
        weight: float tensor.
        scale: from :func:`weight_scale`.
        factor: one number per channel, not 0, shaped to broadcast against ``weight``; gets a gradient.
        buffer: float32 tensor like ``weight`` to write into, valid until the next call with it.

    Returns:
        float32 tensor of the weight's shape.

    Example:
        >>> w = torch.tensor([[1.27, -0.504]])
        >>> fake_quantize_weight(w, weight_scale(w, 127, per_channel=True))
        tensor([[ 1.2700, -0.5000]])
    """
    out: Tensor = _FakeQuantizeWeight.apply(weight, scale, factor, buffer)
    return out


def quantize_weight(weight: Tensor, scale: Tensor, quant_max: int = 127) -> Tensor:
    """The integers of :func:`fake_quantize_weight`, as int8; a learned scale may leave some beyond ``quant_max``."""
    return round_weight(weight, scale).clamp_(-quant_max, quant_max).to(torch.int8)
