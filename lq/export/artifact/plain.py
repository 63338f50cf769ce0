"""What a manifest can hold: text, numbers, and lists and mappings of those."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lq.compat.torch_private import tree_leaves


def holds_tensors(value: Any) -> bool:
    """Whether there is a tensor in lists, tuples and mappings.

    Example:
        >>> holds_tensors({"mask": [None, torch.ones(1)]}), holds_tensors([0.5])
        (True, False)
    """
    return isinstance(value, Tensor) or any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def is_plain(value: Any) -> bool:
    """Whether it is text, a number, a truth value or ``None``.

    Example:
        >>> is_plain("max"), is_plain([1])
        (True, False)
    """
    return value is None or isinstance(value, (bool, int, float, str))


def is_plain_data(value: Any) -> bool:
    """Whether JSON can hold it as it is.

    Example:
        >>> is_plain_data({"sizes": [1, 2]}), is_plain_data((1, 2))
        (True, False)
    """
    if isinstance(value, list):
        return all(map(is_plain_data, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain_data(inner) for key, inner in value.items())
    return is_plain(value)


def as_plain(value: Any) -> Any:
    """What is no tensor as JSON has it, which knows no tuples and no types.

    Example:
        >>> as_plain({"sizes": (1, 2), "dtype": torch.float32})
        {'sizes': [1, 2], 'dtype': 'torch.float32'}
    """
    if isinstance(value, (list, tuple)):
        return list(map(as_plain, value))
    if isinstance(value, dict):
        return {key: as_plain(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, (torch.dtype, torch.device, torch.memory_format)) else value
