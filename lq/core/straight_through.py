"""Rounding to a grid with the gradient of the clipped straight-through estimator, in float32 and in less.

Where a :class:`~lq.core.saving.Saving` is given, results are packed while they are integers, and what autograd would
keep of them is unpacked: the same operations on the same integers, so the same values to the bit.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lq.core import native
from lq.core.packed import Packed, Scalar, pack, unpack
from lq.core.saving import Saving

# In training, values that saturate stay this much (relative) outside the grid, so that the backward pass can tell
# them from the values that round to its ends without keeping a mask or a second copy of the tensor.
_MARK, _MARK_AT_ZERO = 1e-6, 1e-20


class RoundingValues(NamedTuple):
    """What the passes over an activation compute with beside the scale.

    Each is a number, a 0-dim tensor, or a vector with an entry for every grid.

    Args:
        inverse: of the scale.
        low: the lowest integer that the result has.
        high: the highest.
        inside_low: values above this one,
        inside_high: and below this one, let a gradient pass.
        outside: the gradient elsewhere, 0.

    Example:
        >>> exact(0.5, 0.0, 3.0)
        RoundingValues(inverse=2.0, low=0.0, high=3.0, inside_low=-0.25, inside_high=1.75, outside=0.0)
    """

    inverse: Scalar
    low: Scalar
    high: Scalar
    inside_low: Scalar
    inside_high: Scalar
    outside: Scalar


def _zero(scale: Scalar) -> Scalar:
    # A number would be made a tensor on the device again at every use.
    return torch.zeros_like(scale) if isinstance(scale, Tensor) else 0.0


def marking(scale: Scalar, low: Scalar, high: Scalar) -> RoundingValues:
    """For float32: what saturates goes beyond the ends, and the *result* tells where a gradient passes.

    Example:
        >>> values = marking(1.0, 0.0, 3.0)
        >>> values.high > values.inside_high > 3.0
        True
    """
    below, above = _beyond(low, high, 0.5)
    return RoundingValues(1.0 / scale, *_beyond(low, high, 1.0), below * scale, above * scale, _zero(scale))


def exact(scale: Scalar, low: Scalar, high: Scalar) -> RoundingValues:
    """For any dtype: what saturates goes to the ends, and the *input* tells where a gradient passes.

    Example:
        >>> values = exact(0.5, -2.0, 3.0)
        >>> values.high, values.inside_low, values.inside_high
        (3.0, -1.25, 1.75)
    """
    return RoundingValues(1.0 / scale, low, high, (low - 0.5) * scale, (high + 0.5) * scale, _zero(scale))


def _beyond(low: Scalar, high: Scalar, share: float) -> tuple[Any, Any]:
    """The ends, ``low <= 0 <= high``, moved outwards by a share of the mark."""
    stretch, shift = 1.0 + share * _MARK, share * _MARK_AT_ZERO
    return low * stretch - shift, high * stretch + shift


class _Float32(torch.autograd.Function):
    """Marks saturated values; one fresh tensor, or none if it works in place."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Scalar,
        low: Scalar,
        high: Scalar,
        rounding: RoundingValues,
        inplace: bool,
        saving: Saving | None,
        ends: Tensor | None,
    ) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        out, packed = _rounded(x, *rounding[:3], scale, low, high, inplace, saving is not None, ends)
        if saving is not None and packed is not None:
            saving.know(out, partial(_values_again, packed, scale, low, rounding.low, rounding.high, x.dtype))
        ctx.save_for_backward(out)
        ctx.rounding = rounding
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (out,) = ctx.saved_tensors
        return _where_inside(grad, out.detach(), ctx.rounding), None, None, None, None, None, None, None


def _rounded(
    x: Tensor,
    inverse: Scalar,
    lowest: Scalar,
    highest: Scalar,
    scale: Scalar,
    low: Scalar,
    high: Scalar,
    inplace: bool = False,
    packs: bool = False,
    ends: Tensor | None = None,
) -> tuple[Tensor, Packed | None]:
    """Values from ``lowest`` to ``highest``; and the integers, those beyond the grid one beyond its end."""
    if isinstance(scale, float) and (ends is not None or native.usable(x)):
        numbers = cast("tuple[float, float, float]", (inverse, lowest, highest))
        if packs:
            grid = cast("tuple[float, float]", (low, high))
            return native.round_and_pack(x, *numbers, scale, *grid, inplace, ends)
        return native.round_values(x, *numbers, scale, inplace, ends), None
    assert ends is None
    integers, packed = (x.mul_(inverse) if inplace else x.float() * inverse).round_(), None
    if packs:
        packed = pack(integers.clamp_(*cast("tuple[float, float]", (low - 1, high + 1))), low - 1)
    integers.clamp_(*cast("tuple[float, float]", (lowest, highest)))
    return _values(integers, scale, x.dtype), packed


class _AnyDtype(torch.autograd.Function):
    """Computes in float32 whatever the dtype, and keeps the input for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Scalar, rounding: RoundingValues) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rounding = rounding
        return _rounded(x, *rounding[:3], scale, rounding.low, rounding.high)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return _where_inside(grad, x.detach(), ctx.rounding), None, None


class _AnyDtypePacked(torch.autograd.Function):
    """The same, and keeps the integers, those of saturated values one beyond the end."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Scalar, low: Scalar, high: Scalar, rounding: RoundingValues, saving: Saving
    ) -> Tensor:
        bounds: Any = low, high
        integers = (x.float() * rounding.inverse).round_().clamp_(*bounds)
        inside = _where_inside(torch.ones_like(x), x, rounding).bool()
        packed = pack(torch.where(inside, integers, torch.where(integers >= high, high + 1, low - 1)), low - 1)
        out = _values(integers, scale, x.dtype)
        saving.know(out, partial(_values_again, packed, scale, low, low, high, x.dtype))
        saving.made(out)
        ctx.save_for_backward(packed.bytes, packed.bits)
        ctx.shape, ctx.stride, ctx.low, ctx.high = packed.shape, packed.stride, low, high
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        low_bits, bits = ctx.saved_tensors
        integers = unpack(Packed(low_bits, bits, ctx.shape, ctx.stride), ctx.low - 1)
        inside = (integers >= ctx.low) & (integers <= ctx.high)
        return torch.where(inside, grad, 0.0), None, None, None, None, None


def _values(integers: Tensor, scale: Scalar, dtype: torch.dtype) -> Tensor:
    return integers.mul_(scale).to(dtype)


def _values_again(
    packed: Packed, scale: Scalar, grid_low: Scalar, low: Scalar, high: Scalar, dtype: torch.dtype
) -> Tensor:
    if dtype is torch.float32 and isinstance(scale, float) and native.can_unpack(packed):
        return native.unpack(packed, cast(float, grid_low), cast(float, low), cast(float, high), scale)
    bounds: Any = low, high
    return _values(unpack(packed, grid_low - 1).float().clamp_(*bounds), scale, dtype)


def _where_inside(grad: Tensor, x: Tensor, rounding: RoundingValues) -> Tensor:
    low, high = rounding.inside_low, rounding.inside_high
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        # One-dimensional, so that they are compared in float32 and not in the dtype of ``x``.
        low, high = (torch.as_tensor(end, dtype=torch.float32, device=x.device).reshape(1) for end in (low, high))
        return torch.where((x > low) & (x < high), grad, cast(Tensor, rounding.outside))
    out: Tensor = torch.ops.aten.hardtanh_backward(grad, x, low, high)
    return out


def in_float32(
    x: Tensor,
    scale: Scalar,
    low: Scalar,
    high: Scalar,
    rounding: RoundingValues | None = None,
    inplace: bool = False,
    saving: Saving | None = None,
    ends: Tensor | None = None,
) -> Tensor:
    """Round a float32 tensor that wants a gradient; saturated values come out a millionth beyond the grid.

    ``rounding`` is that of :func:`marking`, computed here if it is not given.

    Example:
        >>> x = torch.tensor([0.3, 9.0], requires_grad=True)
        >>> out = in_float32(x, 0.5, 0.0, 3.0)
        >>> out.sum().backward()
        >>> (out > 1.5).tolist(), x.grad
        ([False, True], tensor([1., 0.]))
    """
    out: Tensor = _Float32.apply(x, scale, low, high, rounding or marking(scale, low, high), inplace, saving, ends)
    return out


def in_any_dtype(
    x: Tensor,
    scale: Scalar,
    low: Scalar,
    high: Scalar,
    rounding: RoundingValues | None = None,
    saving: Saving | None = None,
) -> Tensor:
    """Round a tensor of less than float32 that wants a gradient; ``rounding`` is that of :func:`exact`.

    Example:
        >>> x = torch.tensor([0.3, 9.0], dtype=torch.bfloat16, requires_grad=True)
        >>> out = in_any_dtype(x, 0.5, 0.0, 3.0)
        >>> out.sum().backward()
        >>> out.detach(), x.grad
        (tensor([0.5000, 1.5000], dtype=torch.bfloat16), tensor([1., 0.], dtype=torch.bfloat16))
    """
    rounding = rounding or exact(scale, low, high)
    if saving is None:
        out: Tensor = _AnyDtype.apply(x, scale, rounding)
    else:
        out = _AnyDtypePacked.apply(x, scale, low, high, rounding, saving)
    return out


def on_grid(
    x: Tensor,
    scale: Scalar,
    low: Scalar,
    high: Scalar,
    inplace: bool = False,
    saving: Saving | None = None,
    ends: Tensor | None = None,
) -> Tensor:
    """Round a tensor that wants no gradient.

    Example:
        >>> on_grid(torch.tensor([0.3, 9.0]), 0.5, 0.0, 3.0)
        tensor([0.5000, 1.5000])
    """
    out, packed = _rounded(x, 1.0 / scale, low, high, scale, low, high, inplace, saving is not None, ends)
    if saving is not None and packed is not None:
        saving.know(out, partial(_values_again, packed, scale, low, low, high, x.dtype))
        saving.made(out)
    return out
