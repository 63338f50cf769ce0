"""Where a Trainer stands, and how a phase is announced."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer

from lq.progress import Point, Position
from lq.schedule import Phase, QATSchedule


def is_dev_run(trainer: Trainer) -> bool:
    """Whether the run is a ``fast_dev_run``, which writes nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def position_of(trainer: Trainer, batch_idx: int) -> Position:
    """The position of a training at the start of a batch of its current epoch."""
    batches = trainer.num_training_batches
    endless = batches == float("inf")
    return Position(
        epoch=trainer.current_epoch + (0.0 if endless else batch_idx / batches),
        step=trainer.global_step,
        total_epochs=None if trainer.max_epochs in (-1, None) else float(trainer.max_epochs),
        total_steps=None if trainer.max_steps == -1 else float(trainer.max_steps),
        steps_per_epoch=None if endless else float(math.ceil(batches / trainer.accumulate_grad_batches)),
    )


def describe_phase(trainer: Trainer, schedule: QATSchedule, phase: Phase) -> str:
    """The line that announces a phase."""
    epochs = Point(trainer.current_epoch, "epochs")
    where = f"after {_singular(epochs)}, {_singular(Point(trainer.global_step, 'steps'))}"
    if not phase.fake_quant:
        return f"{where}: float training; QAT starts after {_singular(Point.parse('start', schedule.start))}"
    observers = "on" if phase.observer else "off"
    statistics = "frozen" if phase.freeze_bn else "moving"
    return f"{where}: fake quantization on, observers {observers}, BatchNorm statistics {statistics}"


def _singular(point: Point) -> str:
    return str(point).removesuffix("s") if point.value == 1 else str(point)
