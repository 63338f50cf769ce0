"""Where a Trainer stands, and how long it will train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning_utilities.core.rank_zero import rank_zero_info

from lq.compat.lightning_private import epochs_behind
from lq.compat.packages import is_a
from lq.config.points import Point, Position
from lq.config.schedule import QATSchedule
from lq.messages import counted


def is_dev_run(trainer: Trainer) -> bool:
    """Whether the run is a ``fast_dev_run``, which writes nothing.

    Example:
        >>> is_dev_run(Trainer(accelerator="cpu", fast_dev_run=True)), is_dev_run(Trainer(barebones=True))
        (True, False)
    """
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def position_of(trainer: Trainer, batch_idx: int) -> Position:
    """The position of a training at the start of a batch of its current epoch.

    How many optimizer steps an epoch has is unknown where the module makes them itself: none, one or several a batch.

    Example:
        >>> import torch
        >>> from lightning.pytorch import Callback
        >>> from torch.utils.data import DataLoader
        >>> from lq.lightning_module.quiet import quiet_trainer
        >>> from lq.models.image_classifier import ImageClassifier
        >>> class Show(Callback):
        ...     def on_train_batch_start(self, trainer, module, batch, batch_idx):
        ...         print(position_of(trainer, batch_idx))
        >>> module, data = ImageClassifier(torch.nn.Linear(2, 2), num_classes=2), DataLoader([(torch.zeros(2), 0)] * 2)
        >>> quiet_trainer(module, max_epochs=1, callbacks=[Show()]).fit(module, data, data)
        Position(epoch=0.0, step=0, total_epochs=1.0, total_steps=None, steps_per_epoch=2.0)
        Position(epoch=0.5, step=1, total_epochs=1.0, total_steps=None, steps_per_epoch=2.0)
    """
    batches = trainer.num_training_batches
    endless = batches == float("inf")
    is_known = not endless and not _steps_itself(trainer)
    return Position(
        epoch=trainer.current_epoch + (0.0 if endless else batch_idx / batches),
        step=trainer.global_step,
        total_epochs=None if trainer.max_epochs in (-1, None) else float(trainer.max_epochs),
        total_steps=None if trainer.max_steps == -1 else float(trainer.max_steps),
        steps_per_epoch=float(math.ceil(batches / trainer.accumulate_grad_batches)) if is_known else None,
    )


def _steps_itself(trainer: Trainer) -> bool:
    """Whether the module calls its optimizers itself; every call is a step of ``trainer.global_step``."""
    return not trainer.lightning_module.automatic_optimization


def check_length(trainer: Trainer, schedule: QATSchedule) -> tuple[str, ...]:
    """Check a schedule against the length of a training, before its first step.

    Args:
        trainer: of the fit.
        schedule: that will be followed.

    Returns:
        Remarks worth a warning.

    Raises:
        ValueError: if the schedule and the length do not go together; see :meth:`QATSchedule.check`.

    Example:
        >>> import torch
        >>> from lightning.pytorch import Callback
        >>> from torch.utils.data import DataLoader
        >>> from lq.lightning_module.quiet import quiet_trainer
        >>> from lq.models.image_classifier import ImageClassifier
        >>> class Show(Callback):
        ...     def on_train_start(self, trainer, module):
        ...         print(check_length(trainer, QATSchedule(observer_off="9 steps")))
        >>> module, data = ImageClassifier(torch.nn.Linear(2, 2), num_classes=2), DataLoader([(torch.zeros(2), 0)] * 3)
        >>> quiet_trainer(module, max_epochs=2, callbacks=[Show()]).fit(module, data, data)
        ("observer_off='9 steps' is never reached: the training ends after 2 epochs (6 steps).",)
    """
    length, steps = position_of(trainer, 0), _steps_of_epochs(trainer)
    total, counted_later = length.total_steps, _steps_itself(trainer)
    if trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
        # The next loader may be longer or shorter.
        return schedule.check(length.total_epochs, total, length.steps_per_epoch, counted_later=True)
    if len(set(steps)) <= 1:
        per_epoch = steps[0] if steps else length.steps_per_epoch
        return schedule.check(length.total_epochs, total, per_epoch, counted_later)
    if length.total_epochs is None:
        return schedule.check(None, total, None, counted_later=True)
    total = min(float(sum(steps)), math.inf if total is None else total)
    return schedule.check(length.total_epochs, total, None, counted_later, steps)


def _steps_of_epochs(trainer: Trainer) -> list[float]:
    """The steps of each epoch where a callback, which has not acted yet, sets the accumulation of gradients.

    Without a last epoch, those of the epochs in which the accumulation changes.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    scheduler = next((c for c in callbacks if is_a(c, GradientAccumulationScheduler)), None)
    batches, last = trainer.num_training_batches, trainer.max_epochs
    if scheduler is None or batches == float("inf"):
        return []
    epochs = scheduler.epochs if last in (None, -1) else range(last or 0)
    return [float(math.ceil(batches / scheduler.get_accumulate_grad_batches(epoch))) for epoch in epochs]


def require_epochs_left(checkpoint: Mapping[str, Any], limit: int | None) -> None:
    """Refuse to go on from a checkpoint of the float model after which no epoch is left to train.

    Args:
        checkpoint: of the float model.
        limit: the Trainer's ``max_epochs``; ``None`` and -1 are no limit.

    Raises:
        ValueError: saying how to start from the weights alone.

    Example:
        >>> after_ten = {"loops": {"fit_loop": {"epoch_progress": {"current": {"processed": 10}}}}}
        >>> require_epochs_left(after_ten, limit=None)
        >>> require_epochs_left(after_ten, limit=10)
        Traceback (most recent call last):
        ...
        ValueError: The float checkpoint was written after 10 epochs, and ckpt_path continues its training, of which
        max_epochs=10 leaves nothing for QAT. Write QATCallback(float_ckpt_path=...) in the place of ckpt_path, which
        loads the weights alone, or set max_epochs=11.
    """
    done = epochs_behind(checkpoint)
    if limit not in (None, -1) and done >= limit:
        raise ValueError(
            f"The float checkpoint was written after {counted(done, 'epochs')}, and ckpt_path continues its training, "
            f"of which max_epochs={limit} leaves nothing for QAT. Write QATCallback(float_ckpt_path=...) in the place "
            f"of ckpt_path, which loads the weights alone, or set max_epochs={done + max(1, done // 10)}."
        )


def start_here(here: Position, schedule: QATSchedule) -> QATSchedule:
    """The schedule of a run that goes on from a float checkpoint: QAT gets what is left of the training.

    Args:
        here: at the start of the training, with the counters of the checkpoint.
        schedule: the user's, whose start has passed.

    Returns:
        the same with the start at the present position, and with ``freeze_bn`` there too if that has passed.

    Example:
        >>> schedule = start_here(Position(epoch=10, step=500), QATSchedule(start=2, freeze_bn=4, observer_off=12))
        >>> schedule.start, schedule.freeze_bn, schedule.observer_off
        ('500 steps', '500 steps', 12)
    """
    start, freezes = f"{here.step} steps", schedule.freeze_bn
    is_past = freezes is not None and Point.parse("freeze_bn", freezes, never=True).reached(here)
    return replace(schedule, start=start, freeze_bn=start if is_past else freezes)


def keep_start(schedule: QATSchedule, start: int | float | str | None) -> QATSchedule:
    """The schedule of a run that goes on from a checkpoint in which QAT has begun, which happens only once.

    Args:
        schedule: the user's.
        start: the setting with which QAT began; ``None`` if nobody knows.

    Returns:
        the same with that start; a line in the log says so if the user's was another.

    Example:
        >>> keep_start(QATSchedule(start=5), "2 epochs").start, keep_start(QATSchedule(start=5), None).start
        ('2 epochs', 5)
    """
    if start is None:
        return schedule
    (mine, theirs) = (Point.parse("start", raw) for raw in (schedule.start, start))
    if mine == theirs or not (mine.value or theirs.value):
        return schedule
    rank_zero_info(
        f"lq: in this checkpoint QAT has begun, with schedule.start={start!r}, and goes on from there; start="
        f"{schedule.start!r} changes nothing. For another start, begin anew from the float checkpoint."
    )
    return replace(schedule, start=start)
