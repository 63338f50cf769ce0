"""The kernels that round activations, as functions of tensors.

What they write into is made like a tensor that they read: a new one would have the default dtype and device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lq.core.native.build import library
from lq.core.native.calls import call, may_run, written
from lq.core.packed import Packed


def can_unpack(packed: Packed) -> bool:
    """Whether :func:`unpack` can take it.

    Example:
        >>> from lq.core.packed import pack
        >>> can_unpack(pack(torch.tensor([0.0, 3.0]), -1.0)), can_unpack(pack(torch.zeros(2, device="meta"), -1.0))
        (True, False)
    """
    return may_run() and packed.bytes.is_cpu and type(packed.bytes) is Tensor and library().functions is not None


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

    Example:
        >>> ends = torch.empty(2)
        >>> round_values(torch.tensor([-1.0, 0.26, 9.0]), 2.0, 0.0, 3.0, 0.5, ends=ends), ends
        (tensor([0.0000, 0.5000, 1.5000]), tensor([-1.,  9.]))
    """
    out = x if inplace else torch.empty_like(x, requires_grad=False)
    into = None if ends is None else ends.data_ptr()
    call("lq_round", x.data_ptr(), out.data_ptr(), x.numel(), inverse, low, high, scale, into)
    if inplace:
        written(x)
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

    Example:
        >>> values, packed = round_and_pack(torch.tensor([0.26, 9.0]), 2.0, 0.0, 3.0, 0.5, 0.0, 3.0)
        >>> values, packed.bytes  # 0 stands for -1, what is below the grid, and 5 for 4, what is above it
        (tensor([0.5000, 1.5000]), tensor([2, 5], dtype=torch.uint8))
    """
    out = x if inplace else torch.empty_like(x, requires_grad=False)
    low_bits, ninths = (x.new_empty(n, dtype=torch.uint8) for n in (x.numel(), -(-x.numel() // 8)))
    into = None if ends is None else ends.data_ptr()
    numbers = (inverse, low, high, scale, grid_low - 1, grid_high + 1)
    pointers = (low_bits.data_ptr(), ninths.data_ptr(), into)
    call("lq_round_and_pack", x.data_ptr(), out.data_ptr(), x.numel(), *numbers, *pointers)
    if inplace:
        written(x)
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

    Example:
        >>> values, packed = round_and_pack(torch.tensor([0.26, 9.0]), 2.0, 0.0, 3.0, 0.5, 0.0, 3.0)
        >>> unpack(packed, 0.0, 0.0, 3.0, 0.5)
        tensor([0.5000, 1.5000])
    """
    out = packed.bytes.new_empty_strided(packed.shape, packed.stride, dtype=torch.float32)
    pointers = (packed.bytes.data_ptr(), packed.bits.data_ptr(), out.data_ptr())
    call("lq_unpack", *pointers, out.numel(), grid_low - 1, low, high, scale)
    return out
