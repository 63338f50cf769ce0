"""Which tensors the kernels take, and how they are called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from lq.compat.torch_private import is_followed, is_plain
from lq.core.native.build import library

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
        may_run()
        and x.dtype is torch.float32
        and type(x) in _PLAIN
        and is_plain(x)
        and _is_dense(x)
        and library().functions is not None
    )


def may_run() -> bool:
    """Whether kernels may run here and now: outside of compilation and tracing, and not within :func:`off`.

    Example:
        >>> may_run()
        True
        >>> with off():
        ...     may_run()
        False
    """
    return not torch.compiler.is_compiling() and _blocks_without == 0 and not is_followed()


def takes_rows(x: Tensor, *vectors: Tensor) -> bool:
    """Whether vectors hold one number each, or one for each output channel of a weight whose channels come first.

    Args:
        x: a dense tensor.
        vectors: scales and the like, of one shape.

    Example:
        >>> weight = torch.zeros(8, 3)
        >>> takes_rows(weight, torch.ones(())), takes_rows(weight, torch.ones(8, 1)), takes_rows(weight, torch.ones(3))
        (True, True, False)
    """
    first = vectors[0]
    count, shape = first.numel(), first.shape
    matches = count == 1 or (len(shape) == x.dim() and count == shape[0] == len(x) and has_rows(x))
    return matches and all(
        v.shape == shape and v.dtype is torch.float32 and is_plain(v) and v.is_contiguous() for v in vectors
    )


def has_rows(weight: Tensor) -> bool:
    """Whether the output channels of a dense weight, its first dimension, lie one after the other.

    Example:
        >>> has_rows(torch.zeros(8, 3, 3, 3)), has_rows(torch.zeros(3, 8).T)
        (True, False)
    """
    return weight.dim() > 1 and weight.stride(0) * weight.shape[0] == weight.numel() > 0


def call(name: str, *arguments: Any) -> None:
    """Run a kernel on PyTorch's threads; tensors come as pointers.

    Example:
        >>> x, out = torch.tensor([0.2, 0.8]), torch.empty(2)
        >>> call("lq_round", x.data_ptr(), out.data_ptr(), x.numel(), 1.0, 0.0, 5.0, 1.0, None)
        >>> out
        tensor([0., 1.])
    """
    getattr(library().functions, name)(*arguments, torch.get_num_threads())


def written(x: Tensor) -> None:
    """Let autograd know that a kernel wrote into ``x``, which it did not see.

    Example:
        >>> from lq.compat.torch_private import version_of
        >>> x = torch.zeros(2)
        >>> written(x)
        >>> version_of(x)
        1
    """
    if not x.is_inference():
        increment_version(x)


def _is_dense(x: Tensor) -> bool:
    if x.is_contiguous():
        return True
    order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return order is not None and x.is_contiguous(memory_format=order)
