"""Reductions over all processes of a training, and how one of them works alone for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

_is_alone = False  # a plain flag: compiled code reads it


def all_reduce(tensor: Tensor, operation: str) -> None:
    """Reduce a tensor in place over all processes, if there are several.

    Args:
        tensor: of the same shape in all of them.
        operation: name of a ``torch.distributed.ReduceOp``, such as "MAX".

    Example:
        >>> highest = torch.tensor([2.0])
        >>> all_reduce(highest, "MAX")  # one process has the maximum already
        >>> highest
        tensor([2.])
    """
    if not _is_alone and distributed.is_available() and distributed.is_initialized():
        torch.distributed.all_reduce(tensor, getattr(distributed.ReduceOp, operation))


@contextmanager
def alone() -> Iterator[None]:
    """Within the block nothing is reduced: this process calibrates while the others wait for it.

    Example:
        >>> with alone():
        ...     all_reduce(torch.ones(1), "MAX")
    """
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before
