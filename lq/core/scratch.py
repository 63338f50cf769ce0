"""Memory that is used again from step to step."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Memory for a quantized weight: a forward pass borrows it, its backward pass gives it back.

    A fresh tensor at every step would cost more than the arithmetic. Whoever asks while it is lent gets fresh memory,
    so that a layer can be called twice, evaluated or changed in between, and every backward pass finds its own values.

    Example:
        >>> scratch, weight = Scratch(), torch.ones(2, 3)
        >>> memory = scratch.take(weight)
        >>> scratch.take(weight) is memory  # it is lent
        False
        >>> scratch.free = memory  # the backward pass gives it back
        >>> scratch.take(weight) is memory
        True
    """

    def __init__(self) -> None:
        self.free: Tensor | None = None

    def take(self, like: Tensor) -> Tensor:
        """A float32 tensor of the shape, strides and device of ``like``."""
        free, self.free = self.free, None
        if free is None or (free.shape, free.stride(), free.device) != (like.shape, like.stride(), like.device):
            return torch.empty_like(like, dtype=torch.float32, requires_grad=False)
        return free

    def __reduce__(self) -> tuple[type[Scratch], tuple[()]]:
        return Scratch, ()
