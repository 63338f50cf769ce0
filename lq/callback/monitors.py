"""The figure that counts, and callbacks that look at figures of QAT before there are any."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_info

from lq.checks import shown
from lq.compat.lightning_private import logged_by_loaders
from lq.compat.packages import is_a

_PREFIX = "qat/"


def check_monitor(monitor: Any, mode: Any) -> None:
    """Refuse a figure, or a direction, that is none.

    Raises:
        TypeError: if the figure is not called by its name.
        ValueError: for another direction, or one of no figure.

    Example:
        >>> check_monitor("val_acc", "up")
        Traceback (most recent call last):
        ...
        ValueError: mode='up' must be 'max' if a higher val_acc is better, or 'min'.
    """
    if monitor is not None and not (isinstance(monitor, str) and monitor):
        raise TypeError(
            f"monitor={shown(monitor)} ({type(monitor).__name__}) must be a name that validation_step logs, "
            "e.g. 'val_acc'."
        )
    if mode not in (None, "min", "max"):
        raise ValueError(f"mode={mode!r} must be 'max' if a higher {monitor or 'figure'} is better, or 'min'.")
    if mode is not None and monitor is None:
        raise ValueError(f"mode={mode!r} says which way a figure is better, but not which one: give monitor='val_...'.")


def counting_figure(trainer: Trainer, monitor: str | None) -> str | None:
    """The figure of the module's validation that counts: the one that was asked for, or that of a ModelCheckpoint.

    Args:
        trainer: of the run.
        monitor: what was asked for, if anything.

    Example:
        >>> keepers = [ModelCheckpoint(monitor=name) for name in (None, "qat/fake/f1", "val_loss")]
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=keepers)
        >>> counting_figure(trainer, None), counting_figure(trainer, "val_f1")
        ('val_loss', 'val_f1')
    """
    if monitor is not None:
        return monitor
    names = [callback.monitor for callback in _callbacks(trainer, ModelCheckpoint)]
    return next((name for name in names if name is not None and not name.startswith(_PREFIX)), None)


def higher_is_better(trainer: Trainer, monitor: str | None, mode: str | None) -> bool | None:
    """Which way the figure that counts is better; ``None`` if nobody says so, or if no figure counts.

    Args:
        trainer: of the run.
        monitor: the figure that was asked for, if any.
        mode: "min" or "max" as it was asked for; ``None`` takes that of a ModelCheckpoint with the same figure.

    Example:
        >>> keeper = ModelCheckpoint(monitor="val_acc", mode="max")
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=[keeper])
        >>> higher_is_better(trainer, None, None), higher_is_better(trainer, "val_loss", None)
        (True, None)
        >>> higher_is_better(trainer, "val_loss", "min")
        False
    """
    name = counting_figure(trainer, monitor)
    if name is None:
        return None
    modes = [callback.mode for callback in _callbacks(trainer, ModelCheckpoint) if callback.monitor == name]
    known = mode or next(iter(modes), None)
    return None if known is None else known == "max"


def require_figure(trainer: Trainer, module: LightningModule, monitor: str | None) -> None:
    """Check, when a validation is over, that the figure that was asked for is logged and a number.

    The sanity check, which comes before the first step, is such a validation, unless the module logs nothing there.
    A barebones Trainer logs nothing at all; the comparison at the end, which has a Trainer of its own, does.

    Raises:
        ValueError: if it is not.

    Example:
        >>> from lq.lightning_module.quiet import quiet_trainer
        >>> module = LightningModule()
        >>> trainer = quiet_trainer(module)
        >>> trainer.state.fn = "fit"  # as trainer.fit(...) sets it
        >>> trainer.callback_metrics["val_loss"] = torch.tensor(0.5)  # as self.log("val_loss", ...) does
        >>> require_figure(trainer, module, "val_acc")
        Traceback (most recent call last):
        ...
        ValueError: monitor='val_acc': the validation of LightningModule logs no such figure. It logs val_loss; ...
    """
    if monitor is None or trainer.state.fn != "fit" or trainer.barebones:
        return
    logged = {*trainer.callback_metrics, *logged_by_loaders(trainer)}
    logged = {name for name in logged if not name.startswith(_PREFIX)}
    if monitor not in logged and (logged or not trainer.sanity_checking):
        raise ValueError(
            f"monitor={monitor!r}: the validation of {type(module).__name__} logs no such figure. It logs "
            f"{', '.join(sorted(logged)) or 'nothing'}; write self.log({monitor!r}, ...) in validation_step, or name "
            "one of those."
        )


def check_early_stopping(trainer: Trainer) -> None:
    """Refuse to let EarlyStopping wait for a figure that comes only when QAT has started.

    And say what it does with one of the module, whose best value is that of the float model.

    Raises:
        ValueError: if it would end the training, or see the placeholder that a ModelCheckpoint needs.

    Example:
        >>> check_early_stopping(Trainer(barebones=True, callbacks=[EarlyStopping("qat/fake/accuracy")]))
        Traceback (most recent call last):
        ...
        ValueError: EarlyStopping(monitor='qat/fake/accuracy'): this metric is not logged before QAT starts. ...
    """
    for callback in _callbacks(trainer, EarlyStopping):
        if callback.monitor.startswith(_PREFIX) and (callback.strict or callback.monitor in _monitored(trainer)):
            raise ValueError(
                f"EarlyStopping(monitor={callback.monitor!r}): this metric is not logged before QAT starts. Monitor a "
                "metric that your validation_step logs; once QAT has started, it is that of the fake-quantized model. "
                "Or write EarlyStopping(..., strict=False), with no ModelCheckpoint on the same metric."
            )
        if not callback.monitor.startswith(_PREFIX):
            rank_zero_info(
                f"lq: EarlyStopping(monitor={callback.monitor!r}) looks at the float model until QAT starts, and then "
                "compares the fake-quantized one with the best float value. So it may end the training before QAT "
                "starts, or soon after. Give it enough patience, or train the float model in a fit of its own."
            )


def serve_monitors(trainer: Trainer, figures: Collection[str], later: Collection[str]) -> None:
    """Show NaN, which is never the best, to a ModelCheckpoint that monitors a figure of QAT which is yet to come.

    Args:
        trainer: of the run, in a validation.
        figures: names of those that this validation logs; empty before QAT starts.
        later: names of those that come at the end of an epoch, and, with "/" at the end, what the names of those begin
            with that come in some epochs only.

    Raises:
        ValueError: if a ModelCheckpoint monitors a figure that will never come.

    Example:
        >>> keeper = ModelCheckpoint(monitor="qat/fake/accuracy", mode="max")
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=[keeper])
        >>> serve_monitors(trainer, figures=(), later=())  # before QAT starts
        >>> trainer.callback_metrics
        {'qat/fake/accuracy': tensor(nan)}
        >>> serve_monitors(trainer, figures=["qat/fake/f1"], later=["qat/phase"])
        Traceback (most recent call last):
        ...
        ValueError: ModelCheckpoint(monitor='qat/fake/accuracy'): QAT logs no such figure. It logs qat/fake/f1, ...
    """
    begins = tuple(name for name in later if name.endswith("/"))
    for name in _monitored(trainer) - set(figures):
        known = trainer.callback_metrics.get(name)
        if not figures or name in later or name.startswith(begins):
            if known is None:
                trainer.callback_metrics[name] = torch.tensor(math.nan)
        elif known is None or bool(known.isnan()):
            logged = ", ".join(sorted({*figures, *later} - {*begins}))
            raise ValueError(f"ModelCheckpoint(monitor={name!r}): QAT logs no such figure. It logs {logged}.")


def _monitored(trainer: Trainer) -> set[str]:
    monitors = {callback.monitor for callback in _callbacks(trainer, ModelCheckpoint)}
    return {name for name in monitors if name is not None and name.startswith(_PREFIX)}


def _callbacks(trainer: Trainer, kind: type[Any]) -> list[Any]:
    return [callback for callback in trainer.callbacks if is_a(callback, kind)]  # type: ignore[attr-defined]
