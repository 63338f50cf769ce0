"""Where the values of tensors lie."""

from __future__ import annotations

import torch
from torch import Tensor


def address(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; 0 if it has none of its own.

    Example:
        >>> x = torch.zeros(2, 2)
        >>> address(x) == address(x[1]), address(x.to_sparse())
        (True, 0)
    """
    if tensor.layout is not torch.strided:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # tensors without memory of their own
        return 0


def is_same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are views of the same values in the same order.

    Example:
        >>> x = torch.zeros(2, 2)
        >>> is_same_memory(x, x.view_as(x)), is_same_memory(x, x.T), is_same_memory(x, x.clone())
        (True, False, False)
    """
    if a.shape != b.shape or not address(a) or address(a) != address(b):
        return False
    return bool(a.stride() == b.stride() and a.storage_offset() == b.storage_offset() and a.dtype == b.dtype)
