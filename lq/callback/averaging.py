"""Weight averaging beside QAT: what of it is refused, and what must not be averaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging

from lq.backends.prepare import state_of
from lq.packages import is_a
from lq.target import target_of

try:
    from lightning.pytorch.callbacks import WeightAveraging as _WeightAveraging
except ImportError:  # before Lightning 2.6
    _WeightAveraging = None  # type: ignore[assignment,misc]


def check_averaging(own: Callback, trainer: Trainer) -> None:
    """Refuse averaging callbacks that would spoil the quantized model.

    Raises:
        ValueError: if one copies the model before QAT prepares it, or resets BatchNorm statistics.
    """
    callbacks = _callbacks(trainer)
    if any(is_a(c, StochasticWeightAveraging) for c in callbacks):
        raise ValueError(
            "StochasticWeightAveraging cannot be used with QATCallback: it sets a learning rate of its own and resets "
            "the BatchNorm statistics that QAT has frozen. Take an average that leaves both alone: "
            "callbacks=[QATCallback(...), EMAWeightAveraging()] (Lightning 2.6 or newer)."
        )
    early = next(_averaging(callbacks[: callbacks.index(own)]), None)
    if early is not None:
        name = type(early).__name__
        raise ValueError(
            f"{name} copies the model in its setup, before QATCallback has prepared it. "
            f"Put QATCallback first: callbacks=[QATCallback(...), {name}(...)]."
        )


def share_quantization_state(trainer: Trainer, module: LightningModule, name: str) -> None:
    """Give averaged copies of the model the ranges and the phase of the running one.

    An average of ranges is none: before its first batch a range is infinite, and so would stay every mean with it.
    """
    for callback in _averaging(_callbacks(trainer)):
        # Lightning (2.6) has no public name for the averaged model.
        average = getattr(callback, "_average_model", None)
        if average is not None:
            state = state_of(target_of(average.module, name))
            state.load_state_dict(state_of(target_of(module, name)).state_dict())


def _callbacks(trainer: Trainer) -> list[Any]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def _averaging(callbacks: list[Any]) -> Iterator[Any]:
    if _WeightAveraging is not None:
        yield from (c for c in callbacks if is_a(c, _WeightAveraging))
