"""Does every pass over the validation data bring the same samples? Otherwise figures of versions compare nothing."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lq.tracing.structure import tensors_of


class SameData(Callback):
    """Notes what the batches of each pass hold: the sizes and the sum of every tensor.

    Example:
        >>> import torch
        >>> same = SameData()
        >>> for x in (torch.zeros(2), torch.ones(2)):
        ...     same.on_validation_start(None, None)
        ...     same.on_validation_batch_start(None, None, (x,), 0)
        ...     same.on_validation_end(None, None)
        >>> same.note is None
        False
    """

    def __init__(self) -> None:
        self._pass: list[str] = []
        self._passes: list[list[str]] = []

    def on_validation_start(self, trainer: Trainer | None, pl_module: LightningModule | None) -> None:
        """A pass begins."""
        self._pass = []

    def on_validation_batch_start(
        self, trainer: Trainer | None, pl_module: LightningModule | None, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """A batch, before the module may change it."""
        held = [(tuple(tensor.shape), tensor.sum().item()) for tensor in tensors_of(batch) if not tensor.is_quantized]
        self._pass.append(repr(held))

    def on_validation_end(self, trainer: Trainer | None, pl_module: LightningModule | None) -> None:
        """A pass is over; one that fails does not count."""
        self._passes.append(sorted(self._pass))

    @property
    def note(self) -> str | None:
        """What to say if two passes had different samples, in whatever order; ``None`` if all had the same."""
        if all(other == self._passes[0] for other in self._passes):
            return None
        return (
            "each pass over the validation data brought other samples, so metrics of validation_step may differ for "
            "that reason alone; agreement and SQNR are of the same samples. Give a validation loader that brings the "
            "same ones each time: no iterator that goes on where it stopped, and no random choice by a generator of "
            "its own"
        )
