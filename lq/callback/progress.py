"""Where a Trainer stands, and how it says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, RichProgressBar
from lightning_utilities.core.rank_zero import rank_zero_info

from lq.compat.lightning_private import epochs_behind
from lq.compat.packages import is_a
from lq.config.points import Point, Position
from lq.config.schedule import Phase, QATSchedule
from lq.console import is_terminal
from lq.deployment.results import Deployment


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


def say(trainer: Trainer, text: str) -> None:
    """Print a line: above the progress bar on a terminal, where the log would run into it, else into the log.

    Example:
        >>> import logging, sys
        >>> from lightning_utilities.core import rank_zero
        >>> trainer, handler = Trainer(barebones=True), logging.StreamHandler(sys.stdout)
        >>> rank_zero.log.addHandler(handler)
        >>> say(trainer, "QAT starts")
        lq: QAT starts
        >>> rank_zero.log.removeHandler(handler)
    """
    bar = trainer.progress_bar_callback
    if bar is None or not is_terminal():
        rank_zero_info(f"lq: {text}")
    elif trainer.is_global_zero:
        bar.print(f"lq: {text}")


def has_room_for_bar(trainer: Trainer) -> bool:
    """Whether a bar of lq's may be shown beside that of the training: a terminal has room for one of Rich's.

    Example:
        >>> from lightning.pytorch.callbacks import TQDMProgressBar
        >>> bars = TQDMProgressBar(), RichProgressBar()
        >>> [has_room_for_bar(Trainer(accelerator="cpu", logger=False, callbacks=[bar])) for bar in bars]
        [True, False]
        >>> has_room_for_bar(Trainer(barebones=True))
        False
    """
    bar = trainer.progress_bar_callback
    return bar is not None and not is_a(bar, RichProgressBar)


def close_progress_bar(trainer: Trainer, module: LightningModule) -> None:
    """End the progress bar of a fit, which would otherwise be drawn again below all that is printed from now on.

    Example:
        >>> from lightning.pytorch.callbacks import ProgressBar
        >>> class Bar(ProgressBar):
        ...     def teardown(self, trainer, pl_module, stage):
        ...         print("closed")
        >>> close_progress_bar(Trainer(accelerator="cpu", logger=False, callbacks=[Bar()]), LightningModule())
        closed
    """
    bar = trainer.progress_bar_callback
    if bar is not None:
        bar.teardown(trainer, module, stage="fit")  # Lightning does so a moment later


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
            f"The float checkpoint was written after {done} epochs, and ckpt_path continues its training, of which "
            f"max_epochs={limit} leaves nothing for QAT. Write QATCallback(float_ckpt_path=...) in the place of "
            f"ckpt_path, which loads the weights alone, or set max_epochs={done + max(1, done // 10)}."
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


def describe_phase(here: Position, schedule: QATSchedule, phase: Phase, has_batch_norm: bool = True) -> str:
    """The line that announces a phase, with what becomes of BatchNorm statistics where there are any.

    Args:
        here: where the phase begins.
        schedule: of the run.
        phase: that begins.
        has_batch_norm: whether the target has such statistics.

    Example:
        >>> describe_phase(Position(epoch=2, step=50), QATSchedule(start=2), Phase(True, True, False))
        'after 2 epochs, 50 steps: fake quantization on, observers on, BatchNorm statistics moving'
        >>> describe_phase(Position(epoch=0, step=0), QATSchedule(start=2), Phase(False, False, False))
        'from the start: float training; QAT starts after 2 epochs'
    """
    done = (Point(int(here.epoch), "epochs"), Point(here.step, "steps"))
    where = ", ".join(_singular(point) for point in done if point.value)
    where = f"after {where}" if where else "from the start"
    if not phase.fake_quant:
        return f"{where}: float training; QAT starts after {_singular(Point.parse('start', schedule.start))}"
    observers = "on" if phase.observer else "off"
    statistics = f", BatchNorm statistics {'frozen' if phase.freeze_bn else 'moving'}" if has_batch_norm else ""
    return f"{where}: fake quantization on, observers {observers}{statistics}"


def is_told(phase: Phase, before: Phase | None, has_batch_norm: bool) -> bool:
    """Whether a phase differs from the one before in something that there is to say.

    Example:
        >>> moving, frozen = Phase(True, True, False), Phase(True, True, True)
        >>> is_told(frozen, moving, has_batch_norm=True), is_told(frozen, moving, has_batch_norm=False)
        (True, False)
    """
    if before is None or phase.fake_quant != before.fake_quant or phase.observer != before.observer:
        return True
    return has_batch_norm and phase.freeze_bn != before.freeze_bn


def describe_learning_rate(schedule: QATSchedule, initial: float, has_schedulers: bool = True) -> str:
    """The line that says what becomes of the learning rates.

    Args:
        schedule: of the run.
        initial: learning rate of the optimizer.
        has_schedulers: whether the module has schedulers of its own.

    Example:
        >>> describe_learning_rate(QATSchedule(lr=0.5), 0.1)[:64]
        'learning rate of QAT: 0.05 (50% of the initial 0.1), falling to '
    """
    if schedule.lr is None:
        return "learning rate of QAT: the module's own"
    start = initial * schedule.lr
    instead = ", in place of the module's schedulers (schedule.lr: null keeps those)" if has_schedulers else ""
    return (
        f"learning rate of QAT: {start:.3g} ({100 * schedule.lr:g}% of the initial {initial:.3g}), falling to "
        f"{start * schedule.lr_final:.3g} along a cosine{instead}"
    )


def describe_no_result(has_trained: bool, earlier: Deployment | None) -> str:
    """The warning at the end of a fit in which QAT did not start.

    Args:
        has_trained: whether the fit made a step at all.
        earlier: what an earlier fit made, if that still counts.

    Example:
        >>> describe_no_result(False, None)
        'lq: no steps were left to train; nothing was quantized or exported.'
    """
    reason = "the training ended before QAT started" if has_trained else "no steps were left to train"
    where = "" if earlier is None or earlier.directory is None else str(earlier.directory)
    kept = f" The artifact of the earlier fit is in {where}." if where else ""
    return f"lq: {reason}; nothing was quantized or exported.{kept}"


def _singular(point: Point) -> str:
    return str(point).removesuffix("s") if point.value == 1 else str(point)
