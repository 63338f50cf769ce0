"""Callbacks that look at figures of QAT before there are any."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lq.packages import is_a

_PREFIX = "qat/"


def check_early_stopping(trainer: Trainer) -> None:
    """Refuse to let EarlyStopping wait for a figure that comes only when QAT has started.

    Raises:
        ValueError: if it would end the training, or see the placeholder that a ModelCheckpoint needs.
    """
    for callback in _callbacks(trainer, EarlyStopping):
        if callback.monitor.startswith(_PREFIX) and (callback.strict or callback.monitor in _monitored(trainer)):
            raise ValueError(
                f"EarlyStopping(monitor={callback.monitor!r}) has nothing to look at before QAT starts. Monitor what "
                "your validation_step logs, which is the figure of the fake-quantized model once QAT has started; or "
                "let it wait, EarlyStopping(..., strict=False), with no ModelCheckpoint on the same figure."
            )


def serve_monitors(trainer: Trainer, figures: Collection[str], later: str | None) -> None:
    """Show NaN, which is never the best, to a ModelCheckpoint that monitors a figure of QAT which is yet to come.

    Args:
        trainer: of the run.
        figures: names of those that this validation logs; empty before QAT starts.
        later: what the names of figures begin with that come in some epochs only, if any do.

    Raises:
        ValueError: if a ModelCheckpoint monitors a figure that will never come.
    """
    for name in _monitored(trainer) - set(figures):
        known = trainer.callback_metrics.get(name)
        if not figures or (later and name.startswith(later)):
            if known is None:
                trainer.callback_metrics[name] = torch.tensor(math.nan)
        elif known is None or bool(known.isnan()):
            raise ValueError(
                f"ModelCheckpoint(monitor={name!r}): QAT logs no such figure. It logs {', '.join(sorted(figures))}."
            )


def _monitored(trainer: Trainer) -> set[str]:
    monitors = {callback.monitor for callback in _callbacks(trainer, ModelCheckpoint)}
    return {name for name in monitors if name is not None and name.startswith(_PREFIX)}


def _callbacks(trainer: Trainer, kind: type[Any]) -> list[Any]:
    return [callback for callback in trainer.callbacks if is_a(callback, kind)]  # type: ignore[attr-defined]
