"""From ranges of activations to what the fake quantizers compute with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lq.config.specs import ActivationSpec
from lq.core.functional import affine_qparams
from lq.core.packed import Scalar

# The ends of what an absorbed activation lets pass.
ACTIVATIONS: dict[str, tuple[float, float]] = {
    "none": (-torch.inf, torch.inf),
    "relu": (0.0, torch.inf),
    "relu6": (0.0, 6.0),
}

QParams = tuple[Scalar, Scalar, Scalar]

# quant_min, quant_max, symmetric, and the ends of the absorbed activation: numbers for one slot, tensors for several.
SlotGrid = tuple[Any, Any, Any, Any, Any]

# So fine a grid that rounding to it changes no float32 between 2^-41 and 2^63: that of a slot without a range.
_NO_RANGE_SCALE = 2.0**-64


def slot_grid(spec: ActivationSpec, activation: str) -> SlotGrid:
    """The grid of one slot, in numbers.

    Example:
        >>> slot_grid(ActivationSpec(), "relu6")
        (0, 255, False, 0.0, 6.0)
    """
    return (spec.quant_min, spec.quant_max, spec.symmetric, *ACTIVATIONS[activation])


def scale_zero_point(min_val: Tensor, max_val: Tensor, grid: SlotGrid | Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the range that is left behind the absorbed activation.

    Args:
        min_val: lowest values, float32, of any shape.
        max_val: highest values.
        grid: from :func:`slot_grid`, or five rows of such.

    Returns:
        two tensors of that shape.

    Example:
        >>> grid = slot_grid(ActivationSpec(), "relu")
        >>> scale_zero_point(torch.tensor(-1.0), torch.tensor(2.55), grid)  # what is negative does not pass
        (tensor(0.0100), tensor(0.))
    """
    quant_min, quant_max, symmetric, floor, ceiling = grid
    low, high = torch.clamp(min_val, floor, ceiling), torch.clamp(max_val, floor, ceiling)
    return affine_qparams(low, high, quant_min, quant_max, symmetric if isinstance(symmetric, bool) else symmetric > 0)


@torch.no_grad()
def step_and_ends(min_val: Tensor, max_val: Tensor, grid: SlotGrid | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``scale``, ``low`` and ``high`` of :func:`~lq.core.functional.fake_quantize`.

    Where a range is not finite, nothing is rounded, and nothing clipped but by the absorbed activation.

    Example:
        >>> grid = slot_grid(ActivationSpec(), "relu6")
        >>> step_and_ends(torch.tensor(-1.0), torch.tensor(2.55), grid)
        (tensor(0.0100), tensor(0.), tensor(255.))
    """
    quant_min, quant_max, _, floor, ceiling = grid
    scale, zero_point = scale_zero_point(min_val, max_val, grid)
    # An absorbed ReLU shows in a symmetric grid, whose lowest value would be negative.
    low, high = torch.clamp(quant_min - zero_point, min=floor), quant_max - zero_point
    has_range = torch.isfinite(max_val - min_val)
    return (
        torch.where(has_range, scale, _NO_RANGE_SCALE),
        torch.where(has_range, low, floor / _NO_RANGE_SCALE),
        torch.where(has_range, high, ceiling / _NO_RANGE_SCALE),
    )


def of_each(parts: tuple[Tensor, Tensor, Tensor]) -> list[QParams]:
    """:func:`step_and_ends` by slot: numbers on the CPU, where reading them costs nothing, else tensors.

    Example:
        >>> ends = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0])
        >>> of_each(step_and_ends(*ends, slot_grid(ActivationSpec(0, 4), "none")))
        [(0.5, -2.0, 2.0), (1.0, -2.0, 2.0)]
    """
    columns = (part.tolist() if part.is_cpu else part.unbind() for part in parts)
    return list(zip(*columns, strict=True))


# A custom operation, because inductor would repeat this arithmetic for every few values of every activation.
@torch.library.custom_op("lq::step_and_ends", mutates_args=())
def _step_and_ends(min_val: Tensor, max_val: Tensor, grid: Tensor) -> Tensor:
    return torch.stack(step_and_ends(min_val, max_val, grid))


@_step_and_ends.register_fake
def _(min_val: Tensor, max_val: Tensor, grid: Tensor) -> Tensor:
    return min_val.new_empty(3, len(min_val))


def compiled_step_and_ends(min_val: Tensor, max_val: Tensor, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`step_and_ends` of all slots, as one operation in the graph of torch.compile.

    Example:
        >>> grid = torch.tensor([slot_grid(ActivationSpec(0, 4), "none")]).T
        >>> compiled_step_and_ends(torch.tensor([-1.0]), torch.tensor([1.0]), grid)
        (tensor([0.5000]), tensor([-2.]), tensor([2.]))
    """
    scale, low, high = _step_and_ends(min_val, max_val, grid).unbind()
    return scale, low, high
