"""The kernels as functions of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from lq.compat.torch_private import is_followed
from lq.core.native.library import library
from lq.core.packed import Packed

_PLAIN = (Tensor, nn.Parameter)
_blocks_without = 0


@contextmanager
def off() -> Iterator[None]:
    """Within the block nothing is :func:`usable`, in all threads.

    Example:
        >>> with off():
        ...     usable(torch.zeros(2))
        False
    """
    global _blocks_without
    _blocks_without += 1
    try:
        yield
    finally:
        _blocks_without -= 1


def usable(x: Tensor) -> bool:
    """Whether the kernels can take a tensor: plain float32 in the CPU's memory, without gaps, that nobody follows.

    Args:
        x: tensor, any shape.

    Example:
        >>> usable(torch.zeros(2, dtype=torch.float16)), usable(torch.zeros(4, 4)[:, :2])
        (False, False)
    """
    return (
        _may_run()
        and x.dtype is torch.float32
        and x.is_cpu
        and type(x) in _PLAIN
        and x.layout is torch.strided
        and _is_dense(x)
        and not x.is_neg()
        and library().functions is not None
    )


def can_unpack(packed: Packed) -> bool:
    """Whether :func:`unpack` can take it."""
    return _may_run() and packed.bytes.is_cpu and type(packed.bytes) is Tensor and library().functions is not None


def _may_run() -> bool:
    return not torch.compiler.is_compiling() and _blocks_without == 0 and not is_followed()


def has_rows(weight: Tensor) -> bool:
    """Whether the output channels of a dense weight, its first dimension, lie one after the other.

    Example:
        >>> has_rows(torch.zeros(8, 3, 3, 3)), has_rows(torch.zeros(3, 8).T)
        (True, False)
    """
    return weight.dim() > 1 and weight.stride(0) * weight.shape[0] == weight.numel() > 0


def round_values(
    x: Tensor, inverse: float, low: float, high: float, scale: float, inplace: bool = False, ends: Tensor | None = None
) -> Tensor:
    """``clamp(round(x * inverse), low, high) * scale``.

    Args:
        x: tensor that is :func:`usable`.
        inverse: 1 / scale.
        low: lowest multiple of ``scale``.
        high: highest.
        scale: step of the grid.
        inplace: overwrite ``x``.
        ends: float32 of shape (2,), which receives the lowest and highest value of ``x``, both NaN if one is.

    Returns:
        tensor like ``x``.
    """
    out = x if inplace else torch.empty_like(x, requires_grad=False)
    into = None if ends is None else ends.data_ptr()
    _call("lq_round", x.data_ptr(), out.data_ptr(), x.numel(), inverse, low, high, scale, into)
    if inplace:
        _written(x)
    return out


def round_and_pack(
    x: Tensor,
    inverse: float,
    low: float,
    high: float,
    scale: float,
    grid_low: float,
    grid_high: float,
    inplace: bool = False,
    ends: Tensor | None = None,
) -> tuple[Tensor, Packed]:
    """As :func:`round_values`, with the integers.

    Args:
        x: as there, and so are the others.
        inverse: 1 / scale.
        low: lowest multiple in the values.
        high: highest.
        scale: step of the grid.
        grid_low: lowest integer of the grid; what saturates is packed as the one below it.
        grid_high: highest; what saturates is packed as the one above it.
        inplace: overwrite ``x``.
        ends: the lowest and highest value of ``x``.

    Returns:
        the values, a tensor like ``x``, and the integers, of which ``grid_low - 1`` is the lowest.
    """
    out = x if inplace else torch.empty_like(x, requires_grad=False)
    low_bits, ninths = (torch.empty(n, dtype=torch.uint8) for n in (x.numel(), -(-x.numel() // 8)))
    into = None if ends is None else ends.data_ptr()
    numbers = (inverse, low, high, scale, grid_low - 1, grid_high + 1)
    pointers = (low_bits.data_ptr(), ninths.data_ptr(), into)
    _call("lq_round_and_pack", x.data_ptr(), out.data_ptr(), x.numel(), *numbers, *pointers)
    if inplace:
        _written(x)
    return out, Packed(low_bits, ninths, out.shape, out.stride())


def unpack(packed: Packed, grid_low: float, low: float, high: float, scale: float) -> Tensor:
    """The values that :func:`round_and_pack` gave, with the same ``grid_low``, ``low``, ``high`` and ``scale``.

    Args:
        packed: what it packed.
        grid_low: lowest integer of the grid.
        low: lowest multiple in the values.
        high: highest.
        scale: step of the grid.

    Returns:
        float32 tensor of the shape and order in memory of what was packed.
    """
    out = torch.empty_strided(packed.shape, packed.stride)
    pointers = (packed.bytes.data_ptr(), packed.bits.data_ptr(), out.data_ptr())
    _call("lq_unpack", *pointers, out.numel(), grid_low - 1, low, high, scale)
    return out


def weight_scale(weight: Tensor, quant_max: int, eps: float, per_channel: bool) -> Tensor:
    """The scale that covers a weight, or each of its rows.

    Args:
        weight: tensor that is :func:`usable`, and :func:`has_rows` if ``per_channel``.
        quant_max: largest integer.
        eps: scale of zeros.
        per_channel: whether each row has its own.

    Returns:
        float32 of shape (rows, 1, ...), or () without rows.
    """
    rows = weight.shape[0] if per_channel else 1
    scale = torch.empty((rows, *[1] * (weight.dim() - 1)) if per_channel else ())
    _call("lq_weight_scale", weight.data_ptr(), rows, weight.numel() // rows, quant_max, eps, scale.data_ptr())
    return scale


def round_weight(weight: Tensor, scale: Tensor, step: Tensor, out: Tensor | None = None) -> Tensor:
    """``round(weight / scale) * step``.

    Args:
        weight: tensor that is :func:`usable`, and :func:`has_rows` unless ``scale`` has one value.
        scale: float32, contiguous, one value or one a row.
        step: the same.
        out: memory for the result, laid out like ``weight``.

    Returns:
        tensor like ``weight``.
    """
    result = torch.empty_like(weight, requires_grad=False) if out is None else out
    rows, pointers = scale.numel(), (weight.data_ptr(), result.data_ptr())
    _call("lq_round_weight", *pointers, rows, weight.numel() // rows, scale.data_ptr(), step.data_ptr())
    if out is not None:
        _written(out)
    return result


def _call(name: str, *arguments: Any) -> None:
    getattr(library().functions, name)(*arguments, torch.get_num_threads())


def _written(x: Tensor) -> None:
    """Let autograd know, which did not see it."""
    if not x.is_inference():
        increment_version(x)


def _is_dense(x: Tensor) -> bool:
    if x.is_contiguous():
        return True
    order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return order is not None and x.is_contiguous(memory_format=order)
