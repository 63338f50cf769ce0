"""Learned scales: what an observer finds times a factor that is trained, in the log domain."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from lq.compat.torch_private import version_of
from lq.core import native
from lq.core.float32 import Float32Buffers
from lq.core.functional import SMALLEST_SCALE
from lq.core.packed import Scalar
from lq.core.saving import Saving, current, is_recorded, require_version
from lq.core.sharding import is_shard, whole

# Beyond e^16 and e^-16 a factor is no scale; so far it neither overflows nor vanishes.
_LARGEST_LOG = 16.0


_MOST = 0.5 + 2.0**-24  # the float32 behind 0.5


class _LearnedFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Scalar, high: Scalar, saving: Saving | None) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.low, ctx.high = low, high
        out = _rounded(x, scale, low, high)
        if saving is not None:
            saving.know(out, partial(_rounded_again, x.detach(), version_of(x), scale.detach(), low, high))
            saving.made(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = (saved.detach() for saved in ctx.saved_tensors)  # rounding has no second derivative
        in_c = not is_recorded() and _at_once(x, scale, ctx.low, ctx.high) and native.usable(grad)
        if in_c and grad.stride() == x.stride():
            return *native.learned_gradients(x, grad, scale, ctx.low, ctx.high, _MOST), None, None, None
        bounds: Any = ctx.low, ctx.high
        real = x.float() * scale.reciprocal()
        integer = real.round().clamp_(*bounds)
        moved, grad_scale, exact = integer - real, None, grad.float()
        if ctx.needs_input_grad[1]:
            slope = integer.sub_(_where_rounded(real, moved))
            grad_scale = (exact * slope).sum_to_size(scale.shape)
        return _where_rounded(exact, moved).to(grad.dtype), grad_scale, None, None, None


def _where_rounded(x: Tensor, moved: Tensor) -> Tensor:
    """``x`` where a value was moved by at most half a step, as rounding does, and 0 where it has saturated."""
    # One pass, where a mask and torch.where take three and more time each. The ends themselves do not count.
    kept: Tensor = torch.ops.aten.hardtanh_backward(x, moved, -_MOST, _MOST)
    return kept


def _at_once(x: Tensor, scale: Tensor, low: Scalar, high: Scalar) -> bool:
    numbers = not isinstance(low, Tensor) and not isinstance(high, Tensor)
    return numbers and native.usable(x) and native.takes_rows(x, scale)


def _rounded(x: Tensor, scale: Tensor, low: Scalar, high: Scalar) -> Tensor:
    if _at_once(x, scale, low, high):
        return native.round_rows(x, scale, scale, cast(float, low), cast(float, high))
    bounds: Any = low, high
    return (x.float() * scale.reciprocal()).round_().clamp_(*bounds).mul_(scale).to(x.dtype)


def _rounded_again(x: Tensor, version: int, scale: Tensor, low: Scalar, high: Scalar) -> Tensor:
    require_version(x, version)
    return _rounded(x, scale, low, high)


def learned_fake_quantize(x: Tensor, scale: Tensor, low: Scalar, high: Scalar) -> Tensor:
    r"""Round ``x`` to multiples of a learned ``scale`` and saturate.

    .. math:: \hat x = s \cdot \text{clamp}(\text{round}(x / s), l, h), \qquad
        \frac{\partial \hat x}{\partial s} = \begin{cases} \text{round}(x/s) - x/s & \text{inside} \\ l \text{ or } h
        & \text{outside} \end{cases}

    The gradient of ``x`` passes inside and is 0 outside.

    Args:
        x: floating tensor, any shape.
        scale: float32, positive, broadcasts against ``x``.
        low: lowest multiple, at most 0.
        high: highest multiple, at least 0.

    Returns:
        tensor like ``x``.

    Source:
        Esser et al., "Learned Step Size Quantization", https://arxiv.org/abs/1902.08153; with a zero point, which shows
        in ``low`` and ``high``: Bhalgat et al., "LSQ+", https://arxiv.org/abs/2004.09576.

    Example:
        >>> scale = torch.tensor(0.5, requires_grad=True)
        >>> out = learned_fake_quantize(torch.tensor([0.6, 9.0]), scale, 0, 4)
        >>> out.sum().backward()
        >>> out.detach(), scale.grad  # (1 - 1.2) + 4
        (tensor([0.5000, 2.0000]), tensor(3.8000))
    """
    out: Tensor = _LearnedFakeQuantize.apply(x, scale, low, high, current())
    return out


class _Times(torch.autograd.Function):
    """``reference * exp(log_factor)``; keeps no argument, since either may be set before the backward pass."""

    @staticmethod
    def forward(ctx: Any, log_factor: Tensor, reference: Scalar, shape: torch.Size) -> Tensor:
        factor = log_factor.float().clamp(-_LARGEST_LOG, _LARGEST_LOG).exp().view(shape)
        out = factor * reference
        # A tensor without a range has a scale below all others, of which there is nothing to learn.
        known = torch.as_tensor(reference, device=out.device) >= SMALLEST_SCALE
        ctx.save_for_backward(out, known)
        ctx.shape = log_factor.shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, known = ctx.saved_tensors
        return (grad * torch.where(known, out, 0.0)).view(ctx.shape), None, None


class LearnedScale(Float32Buffers):
    r"""A scale that is trained: :math:`s = s_0 \cdot e^p`, with what the observer finds now as :math:`s_0`.

    The parameter ``log_factor``, :math:`p`, is 0 at first, so training starts from the observer. Whatever value it
    takes, the scale is positive; and weight decay, which pulls parameters to 0, pulls the scale to the observed one.
    It has a dimension even where the scale has none: parameters are split among processes along their first.
    While the observer follows its tensor, so does the scale. The gradient is

    .. math:: \frac{\partial L}{\partial p} = s \cdot \frac{\partial L}{\partial s}

    as it is: what the loss changes for a relative change of the scale. That has no unit. In it are neither the size of
    the values nor their number nor that of the batch, so the factor :math:`1 / \sqrt{N h}`, by which the paper brings
    the gradient of :math:`s` to the size of those of weights, has nothing left to do (Jain et al., section 3).

    Args:
        like: tensor of the shape and device of the scale.
        searched: whether the observer's scale is one that takes a search; it is then held as a multiple of a scale that
            takes none, ``start``, which is 0 until :meth:`begin`.

    Source:
        Jain et al., "Trained Quantization Thresholds", https://arxiv.org/abs/1903.08066 (the log domain);
        Esser et al., "Learned Step Size Quantization", https://arxiv.org/abs/1902.08153.

    Example:
        >>> learned = LearnedScale(torch.zeros(2))
        >>> with torch.no_grad():
        ...     _ = learned.log_factor.copy_(torch.tensor([0.0, -0.6931]))
        >>> learned(0.5).detach()
        tensor([0.5000, 0.2500])
    """

    start: Tensor | None

    def __init__(self, like: Tensor, searched: bool = False) -> None:
        super().__init__()
        self.shape = like.shape
        self.log_factor = nn.Parameter(torch.zeros_like(like if like.dim() else like.view(1), dtype=torch.float32))
        self.register_buffer("start", torch.zeros_like(like, dtype=torch.float32) if searched else None)

    def forward(self, reference: Scalar, observed: Scalar | None = None) -> Tensor:
        """The scale.

        Args:
            reference: what it is a multiple of.
            observed: the observer's, where that has been searched for; it counts until :meth:`begin`.

        Returns:
            float32 of the shape of ``like``; its gradient goes to ``log_factor`` alone.
        """
        if self.start is not None:
            unset = reference if observed is None else observed
            reference = torch.where(self.start == 0, unset, self.start * reference)
        log_factor = self.log_factor
        if is_shard(log_factor):  # outside of the module's forward, which gathers it
            log_factor = whole(log_factor).to(log_factor.device)
        out: Tensor = _Times.apply(log_factor, reference, self.shape)
        return out

    @torch.no_grad()
    def begin(self, reference: Tensor, observed: Tensor) -> None:
        """Hold what the search has found as a multiple of ``reference``, where that has not been done."""
        if self.start is not None:
            self.start.copy_(torch.where(self.start == 0, observed / reference, self.start))

    @torch.no_grad()
    def step(self, change: float) -> None:
        r"""Move the scale against the sign of its gradient, and set that to 0, so that no optimizer moves it as well.

        .. math:: p \leftarrow p - c \cdot \text{sign}(\partial L / \partial p)

        Every step changes a scale by the same share, whatever the size of its gradient: that of a tensor's scale is
        a thousand times that of a channel's, and outliers of the first steps are a hundred times the rest. Nothing has
        to be kept from step to step, and what multiplies the loss changes nothing. A gradient that is 0, infinite
        or no number moves nothing.

        Args:
            change: :math:`c`, the change of :math:`p`; for small ones this is the relative change of the scale.

        Source:
            Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex Problems",
            https://arxiv.org/abs/1802.04434; that scales need gradients of one size: Jain et al., section B.2.
        """
        grad = self.log_factor.grad
        if grad is not None:
            finite = grad.sign() + 0.0 * grad  # infinity times 0 is no number; shards have no isfinite
            self.log_factor.sub_(finite.nan_to_num_(nan=0.0), alpha=change)
            grad.zero_()

    @torch.no_grad()
    def reset(self) -> None:
        """Be the observer's scale again."""
        for tensor in (self.log_factor, self.start):
            if tensor is not None:
                tensor.zero_()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if not any(key.startswith(prefix) for key in state_dict):  # a float checkpoint
            self.reset()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
