"""A base class for modules whose buffers hold ranges, and constants that are no buffers."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Self = TypeVar("Self", bound="Float32Buffers")


class Constant:
    """Numbers that a module computes with, on whatever device that is, and that are none of its buffers.

    Whoever averages models averages all of their buffers, and the mean of equal infinities is NaN.

    Args:
        values: on the CPU.

    Example:
        >>> Constant(torch.tensor([0.0, torch.inf])).on("cpu")
        tensor([0., inf])
    """

    def __init__(self, values: Tensor) -> None:
        self._values = self._moved = values

    def on(self, device: torch.device | str) -> Tensor:
        """The numbers on a device, which are moved there once."""
        if self._moved.device != torch.device(device):
            self._moved = self._values.to(device)
        return self._moved


class Float32Buffers(nn.Module):
    """Keeps the dtype of its buffers whatever the model is cast to, and may be absent from a checkpoint.

    Lightning's "*-true" precisions cast every floating buffer, which ranges do not survive; a checkpoint of the float
    model knows nothing of them, and still loads strictly.

    Example:
        >>> import torch
        >>> module = Float32Buffers()
        >>> module.register_buffer("low", torch.zeros(2))
        >>> module.half().low.dtype, module.load_state_dict({}, strict=True)
        (torch.float32, <All keys matched successfully>)
    """

    def _apply(self: Self, fn: Any, recurse: bool = True) -> Self:
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        for constant in (value for value in self.__dict__.values() if isinstance(value, Constant)):
            # Now, and not in a compiled step, whose memory is used again.
            constant.on(next(iter(self.buffers(recurse=False))).device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
