"""The integers of one tensor, and the real values that they stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class TensorGrid:
    """The quantized values of one tensor: ``real = scale * (q - zero_point)`` with q in [quant_min, quant_max].

    Example:
        >>> grid = TensorGrid(scale=0.5, zero_point=128, quant_min=0, quant_max=255)
        >>> grid.ends
        (-64.0, 63.5)
        >>> grid.shifted_into(torch.int8)
        TensorGrid(scale=0.5, zero_point=0, quant_min=-128, quant_max=127)
    """

    scale: float
    zero_point: int
    quant_min: int
    quant_max: int

    def shifted_into(self, dtype: torch.dtype) -> TensorGrid:
        """The same real values with integers that fit into a type.

        A grid that does not fit moves by 128, as between int8 and uint8, or by the nearest shift with which it fits.
        """
        info, shift = torch.iinfo(dtype), 0
        if self.quant_min < info.min or self.quant_max > info.max:
            shift = 128 if self.quant_min < info.min else -128
            shift = min(max(shift, info.min - self.quant_min), info.max - self.quant_max)
        moved = (self.zero_point + shift, self.quant_min + shift, self.quant_max + shift)
        return replace(self, zero_point=moved[0], quant_min=moved[1], quant_max=moved[2])

    def fills(self, dtype: torch.dtype) -> bool:
        """Whether the integers are all that the type has, so that its own saturation is the clamp."""
        info = torch.iinfo(dtype)
        return (self.quant_min, self.quant_max) == (info.min, info.max)

    @property
    def ends(self) -> tuple[float, float]:
        """Lowest and highest real value."""
        return (self.quant_min - self.zero_point) * self.scale, (self.quant_max - self.zero_point) * self.scale
