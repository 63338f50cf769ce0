"""Integers of nine bits: a byte each, and the ninth bits of eight of them in another byte.

A grid of 256 values, and one place beyond either end of it for what saturates, are 258 integers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Scalar = float | Tensor


def _eight_bytes(*values: int) -> int:
    """An int64 with these bytes, the lowest first."""
    return int.from_bytes(bytes(values), "little", signed=True)


# Eight bytes of 0 or 1 are one int64: a product with the first brings their bits together in its highest byte, and one
# with the second copies a byte into all eight, of which the third keeps another bit each.
_TOGETHER = _eight_bytes(128, 64, 32, 16, 8, 4, 2, 1)
_COPIES = _eight_bytes(*[1] * 8)
_OWN_BIT = _eight_bytes(*(1 << k for k in range(8)))
_TO_TOP = _eight_bytes(*[127] * 8)  # carries any bit of a byte into its highest one


class Packed(NamedTuple):
    """Integers ``lowest`` to ``lowest + 511``, in 9/8 bytes each.

    Args:
        bytes: the lower eight bits of their distance from ``lowest``, uint8, one-dimensional, in the order of memory.
        bits: the ninth bits, uint8, one for eight integers.
        shape: of the tensor.
        stride: its order in memory.

    Example:
        >>> packed = pack(torch.tensor([-1.0, 0.0, 255.0, 256.0]), -1.0)
        >>> packed.bytes, packed.bits
        (tensor([0, 1, 0, 1], dtype=torch.uint8), tensor([12], dtype=torch.uint8))
    """

    bytes: Tensor
    bits: Tensor
    shape: torch.Size
    stride: tuple[int, ...]


def pack(integers: Tensor, lowest: Scalar) -> Packed:
    """Pack a tensor of whole numbers, exactly.

    Args:
        integers: floating tensor, any shape.
        lowest: the smallest that may occur, at least -512; a number, or a 0-dim tensor on the device of ``integers``.

    Example:
        >>> packed = pack(torch.tensor([[-1.0, 0.0], [255.0, 256.0]]), -1.0)
        >>> unpack(packed, -1.0)
        tensor([[ -1,   0],
                [255, 256]], dtype=torch.int16)
    """
    distances = integers.to(torch.int16).sub_(_int16(lowest))
    flat = distances.as_strided((distances.numel(),), (1,))
    low = flat.to(torch.uint8)
    return Packed(low, _together(flat.bitwise_right_shift_(8).to(torch.uint8)), distances.shape, distances.stride())


def unpack(packed: Packed, lowest: Scalar) -> Tensor:
    """The integers, as int16 of the shape and order that they had.

    Example:
        >>> unpack(pack(torch.tensor([[-101.0, 0.0], [155.0, 156.0]]), -101.0), -101.0)
        tensor([[-101,    0],
                [ 155,  156]], dtype=torch.int16)
    """
    flat = packed.bytes.to(torch.int16)
    flat.add_(_apart(packed.bits)[: flat.numel()].to(torch.int16), alpha=256).add_(_int16(lowest))
    return flat.as_strided(packed.shape, packed.stride)


def _int16(number: Scalar) -> int | Tensor:
    return number.to(torch.int16) if isinstance(number, Tensor) else int(number)


def _together(ones: Tensor) -> Tensor:
    """Eight bytes of 0 or 1 in the bits of one."""
    padded = F.pad(ones, (0, -ones.numel() % 8)) if ones.numel() % 8 else ones
    return padded.view(torch.int64).mul(_TOGETHER).bitwise_right_shift_(56).to(torch.uint8)


def _apart(bits: Tensor) -> Tensor:
    """The bits of a byte as eight bytes of 0 or 1."""
    eights = bits.to(torch.int64).mul_(_COPIES).bitwise_and_(_OWN_BIT).add_(_TO_TOP)
    return eights.bitwise_right_shift_(7).bitwise_and_(_COPIES).view(torch.uint8)
