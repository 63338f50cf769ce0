"""The arithmetic of activations on a grid: pure functions, one formula for training, conversion and export.

Mapping function (Krishnamoorthi, arXiv:1806.08342): ``q = clamp(round(x / scale) + zero_point, quant_min, quant_max)``
and back ``x = (q - zero_point) * scale``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lq.core.packed import Scalar
from lq.core.saving import Saving
from lq.core.straight_through import RoundingValues, in_any_dtype, in_float32, on_grid

# The scale of what is all zeros. Values in small units have smaller ones, down to that of values that float32 squares.
EPS = torch.finfo(torch.float32).eps
SMALLEST_SCALE = 2.0**-60


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


def fake_quantize(
    x: Tensor,
    scale: Scalar,
    low: Scalar,
    high: Scalar,
    inplace: bool = False,
    saving: Saving | None = None,
    rounding: RoundingValues | None = None,
    ends: Tensor | None = None,
) -> Tensor:
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
        saving: what is told how to make the result again, so that autograd does not keep it; the grid has 256 values.
        rounding: what follows from the grid, for the dtype of ``x`` (:meth:`lq.core.state.QATState.rounding`); if it is
            not given, it is computed here.
        ends: float32 of shape (2,), which receives the lowest and highest value of ``x``; only with a number as scale,
            and where :func:`lq.core.native.usable`.

    Returns:
        tensor like ``x``.

    Example:
        >>> fake_quantize(torch.tensor([-1.0, 0.26, 0.9, 7.0]), 0.5, 0.0, 12.0)
        tensor([0.0000, 0.5000, 1.0000, 6.0000])
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return on_grid(x, scale, low, high, inplace and x.dtype == torch.float32, saving, ends)
    if x.dtype != torch.float32:
        out = in_any_dtype(x, scale, low, high, rounding, saving)
    else:
        out = in_float32(x, scale, low, high, rounding, inplace and not torch.compiler.is_compiling(), saving, ends)
    if saving is not None:
        saving.made(out)
    return out
