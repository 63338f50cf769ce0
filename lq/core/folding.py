"""A BatchNorm with fixed statistics as a factor for each channel of the layer in front of it, and a new bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lq.core import native
from lq.core.saving import is_recorded

_SMALLEST = 1e-12  # a channel whose BatchNorm weight is 0 still has to learn; this is 0 to everything downstream


def fold_batch_norm(norm: Any, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    r"""What weight and bias become with a BatchNorm folded in.

    .. math:: f = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}, \quad b' = (b - \mu) f + \beta

    Args:
        norm: module with ``running_mean``, ``running_var``, ``weight``, ``bias`` and ``eps``.
        bias: of the layer in front of it, or ``None``.

    Returns:
        a factor for each output channel and the new bias, float32 of shape (channels,).

    Source:
        Jacob et al., arXiv:1712.05877, section 3.2.

    Example:
        >>> factor, bias = fold_batch_norm(torch.nn.BatchNorm2d(2, eps=0.0), None)
        >>> factor.tolist(), bias.tolist()
        ([1.0, 1.0], [0.0, 0.0])
    """
    eps = getattr(norm, "eps", 1e-5)
    given = (norm.running_mean, norm.running_var, norm.weight, norm.bias, bias)
    if all(tensor is None or native.usable(tensor) for tensor in given):
        factor, moved = _Folded.apply(*given, eps)
        return factor, moved
    factor = torch.rsqrt(norm.running_var.float() + eps)
    if norm.weight is not None:
        factor = factor * norm.weight
    factor = torch.where(factor.abs() < _SMALLEST, factor + _SMALLEST, factor)
    moved = (-norm.running_mean if bias is None else bias - norm.running_mean) * factor
    return factor, moved if norm.bias is None else moved + norm.bias


def folding_pays(x: Tensor, weight: Tensor) -> bool:
    """Whether a training step is shorter with a frozen BatchNorm folded into the layer in front of it.

    Folding takes passes over the weight, forward and backward; normalizing takes them over the activation. So it pays
    where the activation is the larger. Compiled code normalizes in the pass that rounds, where the activation has to be
    much larger.

    Args:
        x: input of the layer.
        weight: of the layer.

    Example:
        >>> folding_pays(torch.ones(8, 3, 32, 32), torch.ones(16, 3, 3, 3)), folding_pays(torch.ones(1), torch.ones(9))
        (True, False)
    """
    return x.numel() >= (64 if torch.compiler.is_compiling() else 1) * weight.numel()


def normalize_frozen(norm: Any, x: Tensor) -> Tensor:
    """What a BatchNorm gives by its running statistics, also in training.

    Example:
        >>> norm, x = torch.nn.BatchNorm1d(1, affine=False, eps=1e-8), torch.tensor([[1.0], [3.0]])
        >>> normalize_frozen(norm, x).ravel(), norm(x).ravel()  # by a mean of 0 and a variance of 1; by the batch's
        (tensor([1., 3.]), tensor([-1.,  1.]))
    """
    eps = getattr(norm, "eps", 1e-5)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=eps)


class _Folded(torch.autograd.Function):
    """The same in one operation, and so is its backward pass."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        # What the backward pass needs is kept apart: statistics may be written to before it, as DDP does.
        *tensors, eps = given
        factor, moved, kept = native.fold_batch_norm(*tensors, eps=eps, smallest=_SMALLEST)
        ctx.save_for_backward(factor, kept)
        ctx.bias = tensors[4]
        return factor, moved

    @staticmethod
    def backward(ctx: Any, of_factor: Tensor, of_moved: Tensor) -> tuple[Tensor | None, ...]:
        factor, (inverse, centered) = ctx.saved_tensors
        _, _, weight, shift, bias, _ = ctx.needs_input_grad
        if bias and is_recorded():
            centered = centered + (ctx.bias - ctx.bias.detach())  # it is the bias less the mean
        of_weight = of_moved.mul(centered).add_(of_factor).mul_(inverse) if weight else None
        return None, None, of_weight, of_moved if shift else None, of_moved * factor if bias else None, None
