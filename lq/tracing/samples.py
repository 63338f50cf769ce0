"""The samples of a batch: how many there are, the first alone, and a batch of any size for what takes one size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lq.compat.torch_private import tree_flatten, tree_unflatten
from lq.tracing.structure import Inputs, map_tensors, tensors_of


def batch_size(example: Inputs) -> int | None:
    """The first dimension that all tensors of a call share, or ``None``.

    Example:
        >>> batch_size(((torch.zeros(8, 3), torch.zeros(8)), {}))
        8
    """
    sizes = {t.shape[0] for t in tensors_of(example) if t.dim()}
    return sizes.pop() if len(sizes) == 1 else None


def one_sample(example: Inputs) -> Inputs:
    """The example cut to a batch of one, where all its tensors share their first dimension.

    Example:
        >>> one_sample(((torch.zeros(8, 3),), {}))
        ((tensor([[0., 0., 0.]]),), {})
    """
    return example if batch_size(example) is None else _part(example, 0, 1)


def filled_up(example: Inputs, size: int) -> Inputs:
    """A batch with its last sample repeated until there are ``size``.

    Example:
        >>> filled_up(((torch.tensor([1, 2]),), {}), 4)
        ((tensor([1, 2, 2, 2]),), {})
    """

    def fill(t: Tensor) -> Tensor:
        return torch.cat([t, *[t[-1:]] * (size - len(t))]) if t.dim() else t

    args, kwargs = map_tensors(example, fill)
    return args, kwargs


def run_filled_up(run: Callable[..., Any], inputs: Inputs, size: int) -> Any:
    """Call what takes batches of ``size`` independent samples with a batch of any size.

    Args:
        run: what it returns has the batch in front.
        inputs: of one call, whose tensors share their first dimension.
        size: of the batches that ``run`` takes.

    Returns:
        what one call would return. The last part is filled up with its last sample.

    Example:
        >>> run_filled_up(lambda x: {"sum": x.sum(1), "size": len(x)}, ((torch.ones(3, 2),), {}), 2)
        {'sum': tensor([2., 2., 2.]), 'size': 2}
    """
    count = batch_size(inputs)
    if count is None or count in (0, size):
        return run(*inputs[0], **inputs[1])
    parts = []
    for start in range(0, count, size):
        args, kwargs = filled_up(_part(inputs, start, start + size), size)
        parts.append(tree_flatten(run(*args, **kwargs)))
    columns = zip(*(leaves for leaves, _ in parts), strict=True)
    joined = [torch.cat(c)[:count] if isinstance(c[0], Tensor) and c[0].dim() else c[0] for c in columns]
    return tree_unflatten(joined, parts[0][1])


def _part(example: Inputs, start: int, stop: int) -> Inputs:
    args, kwargs = map_tensors(example, lambda t: t[start:stop] if t.dim() else t)
    return args, kwargs
