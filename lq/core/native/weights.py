"""The kernels that round weights, fold BatchNorm into them, and learn scales, as functions of tensors.

What they write into is made like a tensor that they read: a new one would have the default dtype and device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lq.core.native.build import BLOCK
from lq.core.native.calls import call, written


def weight_scale(weight: Tensor, quant_max: int, eps: float, per_channel: bool) -> Tensor:
    """The scale that covers a weight, or each of its rows.

    Args:
        weight: tensor that is :func:`usable`, and :func:`has_rows` if ``per_channel``.
        quant_max: largest integer.
        eps: scale of zeros.
        per_channel: whether each row has its own.

    Returns:
        float32 of shape (rows, 1, ...), or () without rows.

    Example:
        >>> weight_scale(torch.tensor([[1.27, -0.5], [0.0, 0.0]]), 127, 1e-7, per_channel=True)
        tensor([[1.0000e-02],
                [1.0000e-07]])
    """
    rows = weight.shape[0] if per_channel else 1
    scale = weight.new_empty((rows, *[1] * (weight.dim() - 1)) if per_channel else ())
    call("lq_weight_scale", weight.data_ptr(), rows, weight.numel() // rows, quant_max, eps, scale.data_ptr())
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

    Example:
        >>> weight = torch.tensor([[1.0, 0.6, 0.4, 0.4]])
        >>> search_scale(weight, torch.tensor([[1.0]]), 1, [1.0, 0.5])  # at 0.5 all four are 1, for which 0.6 is best
        tensor([[0.6000]])
    """
    scale, tried, rows = torch.empty_like(covering), covering.new_tensor(parts), covering.numel()
    of_rows = (weight.data_ptr(), rows, weight.numel() // rows, covering.data_ptr())
    call("lq_search_scale", *of_rows, quant_max, tried.data_ptr(), len(parts), scale.data_ptr())
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

    Example:
        >>> x, scale = torch.tensor([[0.4, 3.0], [0.4, 3.0]]), torch.tensor([[1.0], [0.5]])
        >>> round_rows(x, scale, 10 * scale, -2.0, 2.0)
        tensor([[ 0., 20.],
                [ 5., 10.]])
    """
    result = torch.empty_like(x, requires_grad=False) if out is None else out
    rows, pointers = scale.numel(), (x.data_ptr(), result.data_ptr())
    call("lq_round_rows", *pointers, rows, x.numel() // rows, scale.data_ptr(), step.data_ptr(), low, high)
    if out is not None:
        written(out)
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

    Example:
        >>> round_weight(torch.tensor([[1.0, 0.4]]), 1, 1e-7, True, torch.tensor([[3.0]]))
        (tensor([[3., 0.]]), tensor([[1.]]))
    """
    result = torch.empty_like(weight, requires_grad=False) if out is None else out
    rows = weight.shape[0] if per_channel else 1
    scale = weight.new_empty((rows, *[1] * (weight.dim() - 1)) if per_channel else ())
    pointers = None if factor is None else factor.data_ptr(), scale.data_ptr()
    sizes = rows, weight.numel() // rows
    call("lq_round_weight", weight.data_ptr(), result.data_ptr(), *sizes, quant_max, eps, *pointers)
    if out is not None:
        written(out)
    return result, scale


def factor_gradients(out: Tensor, grad: Tensor, factor: Tensor) -> Tensor:
    """The gradient of the factor of :func:`round_weight`; ``grad`` becomes that of the weight, in place.

    Args:
        out: the weight times the factor: tensor that is :func:`usable` and :func:`has_rows`.
        grad: of ``out``, laid out like it and as usable.
        factor: float32, contiguous, one value a row.

    Returns:
        tensor like ``factor``.

    Example:
        >>> out, grad = torch.tensor([[6.0, 0.0]]), torch.tensor([[1.0, 1.0]])  # a weight of 2 and 0, times 3
        >>> factor_gradients(out, grad, torch.tensor([[3.0]])), grad
        (tensor([[2.]]), tensor([[3., 3.]]))
    """
    found, rows = torch.empty_like(factor, requires_grad=False), factor.numel()
    pointers = factor.data_ptr(), found.data_ptr()
    call("lq_factor_gradients", out.data_ptr(), grad.data_ptr(), rows, out.numel() // rows, *pointers)
    written(grad)
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

    Example:
        >>> mean, variance, weight = torch.tensor([[1.0], [3.0], [4.0]])
        >>> factor, bias, _ = fold_batch_norm(mean, variance, weight, None, None, eps=1.0, smallest=1e-12)
        >>> factor, bias
        (tensor([2.]), tensor([-2.]))
    """
    factor, moved = torch.empty_like(variance), torch.empty_like(variance)
    kept = variance.new_empty((2, variance.numel()))
    pointers = [None if t is None else t.data_ptr() for t in (mean, variance, weight, shift, bias)]
    results = [t.data_ptr() for t in (factor, moved, kept)]
    call("lq_fold_batch_norm", *pointers, eps, smallest, variance.numel(), *results)
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

    Example:
        >>> x, scale = torch.tensor([0.7, 9.0]), torch.tensor(1.0)
        >>> learned_gradients(x, torch.ones(2), scale, 0.0, 3.0, 0.5)
        (tensor([1., 0.]), tensor(3.3000))
    """
    grad_x, grad_scale, rows = torch.empty_like(x, requires_grad=False), torch.empty_like(scale), scale.numel()
    columns = x.numel() // rows
    sums = x.new_empty(rows * -(-columns // BLOCK), dtype=torch.float64)
    pointers = (x.data_ptr(), grad.data_ptr(), grad_x.data_ptr())
    results = (sums.data_ptr(), grad_scale.data_ptr())
    call("lq_learned_gradients", *pointers, rows, columns, scale.data_ptr(), low, high, most, *results)
    return grad_x, grad_scale
