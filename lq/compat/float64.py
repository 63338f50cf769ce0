"""Devices without float64."""

from __future__ import annotations

import torch
from torch import Tensor

_WITHOUT = frozenset({"mps"})


def has_float64(device: torch.device) -> bool:
    """Whether tensors of float64 can be on a device.

    Example:
        >>> has_float64(torch.device("cpu")), has_float64(torch.device("mps"))
        (True, False)
    """
    return device.type not in _WITHOUT


def as_float64(tensor: Tensor) -> Tensor:
    """A tensor as float64, on the CPU if its device has none.

    Args:
        tensor: of any shape and dtype.

    Example:
        >>> as_float64(torch.ones(2))
        tensor([1., 1.], dtype=torch.float64)
    """
    return tensor.double() if has_float64(tensor.device) else tensor.cpu().double()
