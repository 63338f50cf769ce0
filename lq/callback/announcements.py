"""What a run says: lines above its progress bar or in the log, and their words."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning_utilities.core.rank_zero import rank_zero_info

from lq.compat.packages import is_a
from lq.config.points import Point, Position
from lq.config.schedule import Phase, QATSchedule
from lq.console import is_terminal
from lq.deployment.results import Deployment


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
