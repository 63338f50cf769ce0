"""The learning rates of a quantization-aware training: shares of those that the optimizers began with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer


class InitialLearningRates:
    """Remembers the learning rate that every parameter group began with, and sets shares of it.

    Args:
        optimizers: as ``configure_optimizers`` made them, before a checkpoint restores annealed learning rates.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        >>> InitialLearningRates([optimizer]).apply([optimizer], 0.01)
        >>> optimizer.param_groups[0]["lr"]
        0.005
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._initial = [[_initial(group) for group in optimizer.param_groups] for optimizer in optimizers]

    @property
    def first(self) -> float | None:
        """That of the first group, None without an optimizer."""
        return next((group for groups in self._initial for group in groups), None)

    def apply(self, optimizers: Sequence[Optimizer], scale: float | None) -> None:
        """Set every learning rate to ``scale`` times its initial one; None leaves them alone."""
        if scale is None:
            return
        for optimizer, known in zip(optimizers, self._initial, strict=True):
            # Finetuning callbacks add groups on the way.
            known += [_initial(group) for group in optimizer.param_groups[len(known) :]]
            for group, initial in zip(optimizer.param_groups, known, strict=True):
                group["lr"] = initial * scale


def _initial(group: dict[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))
