"""The arithmetic of activations on a grid: pure functions, one formula for training, conversion and export.

Mapping function (Krishnamoorthi, arXiv:1806.08342): ``q = clamp(round(x / scale) + zero_point, quant_min, quant_max)``
and back ``x = (q - zero_point) * scale``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# The scale of what is all zeros. Values in small units have smaller ones, down to that of values that float32 squares.
EPS = torch.finfo(torch.float32).eps
SMALLEST_SCALE = 2.0**-60

Scalar = float | Tensor


def affine_qparams(
    min_val: Tensor, max_val: Tensor, quant_min: int | Tensor, quant_max: int | Tensor, symmetric: bool | Tensor = False
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the grid that covers ``[min(0, min_val), max(0, max_val)]``; any shape, no loop.

    Affine: ``scale = (max - min) / (quant_max - quant_min)``, ``zero_point = quant_min - round(min / scale)``.
    Symmetric: ``scale = max(|min| / -quant_min, max / quant_max)``, ``zero_point = 0``. ``scale`` is at least
    2^-60, and ``EPS`` where ``min == max == 0``.

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
    scale = (high - low) / (quant_max - quant_min)
    if symmetric is not False:
        ends = torch.as_tensor(quant_min, device=low.device), torch.as_tensor(quant_max, device=low.device)
        covering = torch.maximum(low / ends[0].clamp(max=-1), high / ends[1].clamp(min=1))
        scale = torch.where(torch.as_tensor(symmetric, device=low.device), covering, scale)
    scale = torch.where(scale == 0, EPS, scale.clamp(min=SMALLEST_SCALE))
    bounds: Any = quant_min, quant_max
    zero_point = (quant_min - torch.round(low / scale)).clamp(*bounds)
    if symmetric is not False:
        zero_point = torch.where(torch.as_tensor(symmetric, device=low.device), 0.0, zero_point)
    return scale, zero_point


# In training, values that saturate stay this much (relative) outside the grid, so that the backward pass can tell
# them from the values that round to its ends without keeping a mask or a second copy of the tensor.
_MARK, _MARK_AT_ZERO = 1e-6, 1e-20


def _beyond(low: Scalar, high: Scalar, share: float) -> tuple[Any, Any]:
    """The ends, ``low <= 0 <= high``, moved outwards by a share of the mark."""
    stretch, shift = 1.0 + share * _MARK, share * _MARK_AT_ZERO
    return low * stretch - shift, high * stretch + shift


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
        out.round_().clamp_(*_beyond(low, high, 1.0)).mul_(scale)
        ctx.save_for_backward(out)
        ctx.ends = tuple(end * scale for end in _beyond(low, high, 0.5))
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
        low: lowest multiple, integer-valued, at most 0.
        high: highest multiple, integer-valued, at least 0.
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
