"""The learning rates of a quantization-aware training: shares of those that the optimizers began with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR


class InitialLearningRates:
    """Remembers the learning rate that every parameter group was given, and sets shares of it.

    That is the one it began with, or the peak of ``OneCycleLR`` and ``CyclicLR``.

    Args:
        optimizers: as ``configure_optimizers`` made them, before a checkpoint restores annealed learning rates.
        schedulers: the module's.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        >>> InitialLearningRates([optimizer]).apply([optimizer], 0.01)
        >>> optimizer.param_groups[0]["lr"]
        0.005
    """

    def __init__(self, optimizers: Sequence[Optimizer], schedulers: Sequence[object] = ()) -> None:
        self._initial = [(optimizer, _rates_of(optimizer)) for optimizer in optimizers]
        for scheduler in schedulers:
            if isinstance(scheduler, CyclicLR):
                index = next(i for i, optimizer in enumerate(optimizers) if optimizer is scheduler.optimizer)
                self._initial[index] = scheduler.optimizer, [float(peak) for peak in scheduler.max_lrs]

    @property
    def first(self) -> float | None:
        """That of the first group, None without an optimizer."""
        return next((rate for _, rates in self._initial for rate in rates), None)

    def apply(self, optimizers: Sequence[Optimizer], scale: float | None) -> None:
        """Set every learning rate to ``scale`` times its initial one; None leaves them alone.

        A group that came on the way, of a finetuning callback, has the rate of now, and falls with the others. An
        optimizer that took the place of another one has initial rates of its own.
        """
        before = self._initial
        self._initial = [next((own for own in before if own[0] is o), None) or (o, _rates_of(o)) for o in optimizers]
        for optimizer, known in self._initial:
            del known[len(optimizer.param_groups) :]
            new = optimizer.param_groups[len(known) :]
            known += [_initial(group) if scale is None else float(group["lr"]) / (scale or 1) for group in new]
            if scale is None:
                continue
            for group, initial in zip(optimizer.param_groups, known, strict=True):
                if isinstance(group["lr"], Tensor):  # as compiled and captured optimizers have it
                    group["lr"].fill_(initial * scale)
                else:
                    group["lr"] = initial * scale


def _rates_of(optimizer: Optimizer) -> list[float]:
    return [_initial(group) for group in optimizer.param_groups]


def _initial(group: dict[str, Any]) -> float:
    # OneCycleLR begins far below the rate that the user has chosen, which is its peak.
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))
