"""Fake quantization of weights: the scale is a function of the weight, the same in training, conversion and export."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lq.compat.torch_private import version_of
from lq.config.specs import WeightSpec
from lq.core import native
from lq.core.functional import EPS, SMALLEST_SCALE
from lq.core.saving import Saving, current, is_recorded, require_version
from lq.core.scratch import Scratch

# Scales that "mse" tries, as parts of the one that clips nothing: 1, 0.79, 0.63, ... 0.16.
_CANDIDATES = tuple(2.0 ** (-k / 3) for k in range(9))


def weight_scale(weight: Tensor, spec: WeightSpec, channel_axis: int = 0) -> Tensor:
    r"""Symmetric scale of a weight.

    Of a channel that is all but dead it is at least 2^-16 of the largest one (and not more than ``EPS`` for that
    reason), so that its bias fits into an int32 on it; of a weight that is all zeros it is ``EPS``.

    ``observer="minmax"``: :math:`s = \max|w| / q` with q = ``spec.quant_max``, so that nothing is clipped.
    ``"mse"``: of some scales from there down the one with the least squared error, and then, for the integers
    :math:`n = \text{clamp}(\text{round}(w / s), -q, q)` that it gives, the best scale in closed form,
    :math:`\langle w, n \rangle / \langle n, n \rangle`; never a larger error than that of min/max.

    Args:
        weight: float tensor, any shape.
        spec: ``quant_max``, ``per_channel`` and ``observer`` count.
        channel_axis: the output channels' axis.

    Returns:
        float32 scales, shaped so that they broadcast against ``weight`` (0-dim if per tensor).

    Raises:
        ValueError: if the weight is empty.

    Source:
        of "mse": Zhang et al., "LQ-Nets", https://arxiv.org/abs/1807.10029, section 3.2, alternates between integers
        and scale in this way; here each candidate gets one turn.

    Example:
        >>> weight_scale(torch.tensor([[1.27, -0.5], [0.0, 0.0]]), WeightSpec(-127, 127))
        tensor([[1.0000e-02],
                [1.1921e-07]])
    """
    if weight.numel() == 0:
        raise ValueError(f"A weight of shape {tuple(weight.shape)} holds no numbers; it cannot be quantized.")
    with torch.no_grad():
        at_once = native.usable(weight) and (not spec.per_channel or (channel_axis == 0 and native.has_rows(weight)))
        if at_once:
            covering = native.weight_scale(weight, spec.quant_max, EPS, spec.per_channel)
        else:
            covering = _covering(weight, spec, channel_axis)
        if spec.observer == "minmax":
            return covering
        if at_once:
            return native.search_scale(weight, covering, spec.quant_max, _CANDIDATES).clamp_(min=SMALLEST_SCALE)
        w = weight.detach().float()
        rows = w.movedim(channel_axis, 0).flatten(1) if spec.per_channel else w.reshape(1, -1)
        found = _least_squares(rows, covering.reshape(-1, 1), spec.quant_max)
        return found.reshape(covering.shape).clamp_(min=SMALLEST_SCALE)


def _covering(weight: Tensor, spec: WeightSpec, channel_axis: int) -> Tensor:
    """The scales that clip nothing."""
    w, keep = weight.detach().float(), spec.per_channel
    dims = [d for d in range(w.dim()) if d != channel_axis] if keep else list(range(w.dim()))
    scale = torch.maximum(w.amax(dims, keepdim=keep), -w.amin(dims, keepdim=keep)) / spec.quant_max
    least = scale.max().mul(2.0**-16).clamp(max=EPS)
    return torch.maximum(scale, F.threshold(least, 0.0, EPS))


def _least_squares(rows: Tensor, covering: Tensor, quant_max: int) -> Tensor:
    """The scale of each row; one candidate after the other, because all at once would take nine times the memory."""
    best, scale = torch.zeros_like(covering), covering
    integers, products = torch.empty_like(rows), torch.empty_like(rows)
    for part in _CANDIDATES:
        torch.mul(rows, (covering * part).reciprocal(), out=integers).round_().clamp_(-quant_max, quant_max)
        product = torch.mul(rows, integers, out=products).sum(1, keepdim=True)
        square = integers.square_().sum(1, keepdim=True)
        # With the best scale for these integers, the error is |w|^2 less this.
        explained = product * product / square
        better = explained > best
        scale, best = torch.where(better, product / square, scale), torch.where(better, explained, best)
    return scale


def _rounded(weight: Tensor, scale: Tensor, step: Tensor, memory: Tensor | None = None) -> Tensor:
    if native.usable(weight) and native.takes_rows(weight, scale, step):
        return native.round_rows(weight, scale, step, out=memory)
    out = torch.mul(weight.float(), scale.reciprocal(), out=memory)
    return out.round_().mul_(step)


def _rounded_again(weight: Tensor, version: int, scale: Tensor, step: Tensor) -> Tensor:
    require_version(weight, version)
    return _rounded(weight, scale, step)


# A custom operation, because inductor would fuse this with bringing the weight into the order that its convolutions
# want, and then read and write single values.
@torch.library.custom_op("lq::rounded_weight", mutates_args=())
def _rounded_apart(weight: Tensor, scale: Tensor, step: Tensor) -> Tensor:
    return _rounded(weight, scale, step)


@_rounded_apart.register_fake
def _(weight: Tensor, scale: Tensor, step: Tensor) -> Tensor:
    return torch.empty_like(weight, dtype=torch.float32)


class Covering(NamedTuple):
    """The scale of :func:`weight_scale` with ``observer="minmax"``, found in the pass over the weight that rounds it.

    Args:
        spec: its grid.
        channel_axis: the output channels' axis of the weight.

    Example:
        >>> weight, covering = torch.tensor([[1.27, -0.504]]), Covering(WeightSpec(-127, 127))
        >>> covering.of(weight), fake_quantize_weight(weight, covering)
        (tensor([[0.0100]]), tensor([[ 1.2700, -0.5000]]))
    """

    spec: WeightSpec
    channel_axis: int = 0

    def of(self, weight: Tensor) -> Tensor:
        """The scale alone."""
        return weight_scale(weight, self.spec, self.channel_axis)

    def rounded(self, weight: Tensor, factor: Tensor | None, memory: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The weight and its scale, if the kernels can take them."""
        spec = self.spec
        if not native.usable(weight) or (factor is not None and not native.takes_rows(weight, factor)):
            return None
        if spec.per_channel and not (self.channel_axis == 0 and native.has_rows(weight)):
            return None
        if weight.numel() == 0 or (factor is not None and (factor.numel() > 1) != spec.per_channel):
            return None
        return native.round_weight(weight, spec.quant_max, EPS, spec.per_channel, factor, memory)


class _FakeQuantizeWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scale: Tensor | Covering,
        factor: Tensor | None,
        scratch: Scratch | None,
        saving: Saving | None,
    ) -> Tensor:
        ctx.scratch, ctx.dtype, memory = scratch, weight.dtype, None
        if scratch is not None:
            ctx.memory = scratch.take(weight)
            # With the version counter of the memory: a graph that is kept beyond its backward pass will notice.
            memory = ctx.memory.detach()
        at_once = scale.rounded(weight, factor, memory) if isinstance(scale, Covering) else None
        if isinstance(scale, Covering):
            scale = scale.of(weight) if at_once is None else at_once[1]
        step = scale if factor is None or (at_once is not None and saving is None) else scale * factor
        out: Tensor
        if at_once is not None:
            out = at_once[0]
        elif torch.compiler.is_compiling() and weight.is_cpu:
            out = _rounded_apart(weight, scale, step)
        else:
            out = _rounded(weight, scale, step, memory)
        if saving is not None:
            saving.know(out, partial(_rounded_again, weight.detach(), version_of(weight), scale, step))
        if factor is not None:
            ctx.save_for_backward(out, factor)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, grad_factor = ctx.saved_tensors, None  # read once: torch.utils.checkpoint gives them out once
        if is_recorded():  # the gradient is to be differentiated itself, and reads the memory then
            grad, grad_factor = _differentiable(grad, *saved)
        elif saved:
            out, factor = saved
            # In place: a convolution makes this gradient for this function alone, and a copy costs more than the rest.
            if not ctx.needs_input_grad[2]:
                grad = grad.mul_(factor)
            elif native.usable(grad) and native.takes_rows(grad, factor) and grad.stride() == out.stride():
                grad_factor = native.factor_gradients(out, grad, factor)
            else:
                grad_factor = _sum_of_products(out, grad, factor) / factor
                grad = grad.mul_(factor)
        if ctx.scratch is not None and not is_recorded():
            ctx.scratch.free = ctx.memory
        return grad.to(ctx.dtype), None, grad_factor, None, None


def _differentiable(grad: Tensor, *saved: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradients of the weight and of the factor, if there is one, by operations that have gradients."""
    if not saved:
        return grad, None
    out, factor = saved
    return grad * factor, (grad * (out / factor)).sum_to_size(factor.shape)


def _sum_of_products(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """``(a * b).sum_to_size(like.shape)`` without the product in memory, where the channels come first."""
    if like.numel() == like.shape[0] == len(a):
        summed: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
        return summed.view_as(like)
    return (a * b).sum_to_size(like.shape)


def fake_quantize_weight(
    weight: Tensor, scale: Tensor | Covering, factor: Tensor | None = None, scratch: Scratch | None = None
) -> Tensor:
    """Round a weight to its grid, and multiply by a factor per channel if given: ``round(w / scale) * scale * factor``.

    The scale has to cover every value, as that of min/max does: nothing is clipped, and the gradient passes straight
    through.

    Args:
        weight: float tensor.
        scale: from :func:`weight_scale`, or to be found on the way.
        factor: one number per channel, not 0, shaped to broadcast against ``weight``; gets a gradient.
        scratch: memory to use.

    Returns:
        float32 tensor of the weight's shape.

    Example:
        >>> w = torch.tensor([[1.27, -0.504]])
        >>> fake_quantize_weight(w, weight_scale(w, WeightSpec(-127, 127)))
        tensor([[ 1.2700, -0.5000]])
    """
    saving = current()
    if saving is not None and scratch is not None:
        scratch.free, scratch = None, None  # the backward pass makes the values again
    if not (torch.is_grad_enabled() and (weight.requires_grad or (factor is not None and factor.requires_grad))):
        scratch = None  # without a backward pass nobody would give it back
    out: Tensor = _FakeQuantizeWeight.apply(weight, scale, factor, scratch, saving)
    if saving is not None:
        saving.made(out)
    return out


def quantize_weight(weight: Tensor, scale: Tensor, quant_max: int = 127) -> Tensor:
    """The integers of a fake-quantized weight, as int8; only a learned or "mse" scale leaves some to be clipped.

    Example:
        >>> quantize_weight(torch.tensor([[1.27, -0.504, 9.0]]), torch.tensor([[0.01]]))
        tensor([[127, -50, 127]], dtype=torch.int8)
    """
    return (weight.float() * scale.reciprocal()).round_().clamp_(-quant_max, quant_max).to(torch.int8)
