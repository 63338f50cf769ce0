"""The kernels as functions of tensors.

What they write into is made like a tensor that they read: a new one would have the default dtype and device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from lq.compat.torch_private import is_followed, is_plain
from lq.core.native.build import BLOCK, library
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
        and type(x) in _PLAIN
        and is_plain(x)
        and _is_dense(x)
        and library().functions is not None
    )


def can_unpack(packed: Packed) -> bool:
    """Whether :func:`unpack` can take it."""
    return _may_run() and packed.bytes.is_cpu and type(packed.bytes) is Tensor and library().functions is not None


def _may_run() -> bool:
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
    low_bits, ninths = (x.new_empty(n, dtype=torch.uint8) for n in (x.numel(), -(-x.numel() // 8)))
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
    out = packed.bytes.new_empty_strided(packed.shape, packed.stride, dtype=torch.float32)
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
    scale = weight.new_empty((rows, *[1] * (weight.dim() - 1)) if per_channel else ())
    _call("lq_weight_scale", weight.data_ptr(), rows, weight.numel() // rows, quant_max, eps, scale.data_ptr())
    return scale


def search_scale(weight: Tensor, covering: Tensor, quant_max: int, parts: Sequence[float]) -> Tensor:
    """The scale of least squared error, of a weight or of each of its rows.

    Args:
        weight: tensor that is :func:`usable`, and :func:`has_rows` unless ``covering`` has one value.
        covering: float32, contiguous: the scales that clip nothing, one value or one a row.
        quant_max: largest integer.
        parts: of ``covering``, that are tried.

    Returns:
        float32 of the shape of ``covering``.
    """
    scale, tried, rows = torch.empty_like(covering), covering.new_tensor(parts), covering.numel()
    of_rows = (weight.data_ptr(), rows, weight.numel() // rows, covering.data_ptr())
    _call("lq_search_scale", *of_rows, quant_max, tried.data_ptr(), len(parts), scale.data_ptr())
    return scale


def round_rows(
    x: Tensor,
    scale: Tensor,
    step: Tensor,
    low: float = -math.inf,
    high: float = math.inf,
    out: Tensor | None = None,
) -> Tensor:
    """``clamp(round(x / scale), low, high) * step``.

    Args:
        x: tensor that is :func:`usable`, and :func:`has_rows` unless ``scale`` has one value.
        scale: float32, contiguous, one value or one a row.
        step: the same.
        low: lowest multiple.
        high: highest.
        out: memory for the result, laid out like ``x``.

    Returns:
        tensor like ``x``.
    """
    result = torch.empty_like(x, requires_grad=False) if out is None else out
    rows, pointers = scale.numel(), (x.data_ptr(), result.data_ptr())
    _call("lq_round_rows", *pointers, rows, x.numel() // rows, scale.data_ptr(), step.data_ptr(), low, high)
    if out is not None:
        _written(out)
    return result


def round_weight(
    weight: Tensor, quant_max: int, eps: float, per_channel: bool, factor: Tensor | None, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A weight on the grid whose scale covers it: :func:`weight_scale` and :func:`round_rows` in one pass.

    Args:
        weight: tensor that is :func:`usable`, and :func:`has_rows` if ``per_channel``.
        quant_max: largest integer.
        eps: scale of zeros.
        per_channel: whether each row has its own scale.
        factor: float32, contiguous, one value a row: multiplies it, once it is rounded.
        out: memory for the result, laid out like ``weight``.

    Returns:
        tensor like ``weight``, and the scale: float32 of shape (rows, 1, ...), or () without rows.
    """
    result = torch.empty_like(weight, requires_grad=False) if out is None else out
    rows = weight.shape[0] if per_channel else 1
    scale = weight.new_empty((rows, *[1] * (weight.dim() - 1)) if per_channel else ())
    pointers = None if factor is None else factor.data_ptr(), scale.data_ptr()
    sizes = rows, weight.numel() // rows
    _call("lq_round_weight", weight.data_ptr(), result.data_ptr(), *sizes, quant_max, eps, *pointers)
    if out is not None:
        _written(out)
    return result, scale


def factor_gradients(out: Tensor, grad: Tensor, factor: Tensor) -> Tensor:
    """The gradient of the factor of :func:`round_weight`; ``grad`` becomes that of the weight, in place.

    Args:
        out: the weight times the factor: tensor that is :func:`usable` and :func:`has_rows`.
        grad: of ``out``, laid out like it and as usable.
        factor: float32, contiguous, one value a row.

    Returns:
        tensor like ``factor``.
    """
    found, rows = torch.empty_like(factor, requires_grad=False), factor.numel()
    pointers = factor.data_ptr(), found.data_ptr()
    _call("lq_factor_gradients", out.data_ptr(), grad.data_ptr(), rows, out.numel() // rows, *pointers)
    _written(grad)
    return found


def fold_batch_norm(
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    shift: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    smallest: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """A BatchNorm as a factor for each channel, and the bias that it leaves.

    Args:
        mean: tensor that is :func:`usable`, of shape (channels,), as are the others.
        variance: the statistics.
        weight: of the BatchNorm, if it has one.
        shift: its own bias, if it has one.
        bias: of the layer in front of it, if that has one.
        eps: of the BatchNorm.
        smallest: what is added to factors below it.

    Returns:
        factor and bias, and, of shape (2, channels), ``1 / sqrt(variance + eps)`` and ``bias - mean``.
    """
    factor, moved = torch.empty_like(variance), torch.empty_like(variance)
    kept = variance.new_empty((2, variance.numel()))
    pointers = [None if t is None else t.data_ptr() for t in (mean, variance, weight, shift, bias)]
    results = [t.data_ptr() for t in (factor, moved, kept)]
    _call("lq_fold_batch_norm", *pointers, eps, smallest, variance.numel(), *results)
    return factor, moved, kept


def learned_gradients(
    x: Tensor, grad: Tensor, scale: Tensor, low: float, high: float, most: float
) -> tuple[Tensor, Tensor]:
    """The gradients of ``clamp(round(x / scale), low, high) * scale``.

    Args:
        x: tensor that is :func:`usable`, and :func:`has_rows` unless ``scale`` has one value.
        grad: of the result, laid out like ``x`` and as usable.
        scale: float32, contiguous, one value or one a row.
        low: lowest multiple.
        high: highest.
        most: steps by which rounding may move a value; what moves farther has saturated.

    Returns:
        those of ``x`` and of ``scale``.
    """
    grad_x, grad_scale, rows = torch.empty_like(x, requires_grad=False), torch.empty_like(scale), scale.numel()
    columns = x.numel() // rows
    sums = x.new_empty(rows * -(-columns // BLOCK), dtype=torch.float64)
    pointers = (x.data_ptr(), grad.data_ptr(), grad_x.data_ptr())
    results = (sums.data_ptr(), grad_scale.data_ptr())
    _call("lq_learned_gradients", *pointers, rows, columns, scale.data_ptr(), low, high, most, *results)
    return grad_x, grad_scale


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
