"""The course of one fit: where it is in its schedule, and what that sets in the target and in the optimizers."""

from __future__ import annotations

from dataclasses import replace

from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from lq.backends.prepare import state_of
from lq.callback.announcements import describe_learning_rate, describe_phase, is_told, say
from lq.callback.calibration import calibrate_at_start, with_calibration
from lq.callback.learning_rate import InitialLearningRates
from lq.callback.monitors import check_early_stopping
from lq.callback.phases import PhaseSwitch, has_batch_norm
from lq.callback.progress import check_length, keep_start, position_of, start_here
from lq.callback.scales import learned_scales, step_scales
from lq.checkpoints.entry import CheckpointEntry
from lq.config.schedule import Began, Phase, QATSchedule
from lq.core.lsq import LearnedScale
from lq.messages import counted


class Course:
    """Follows a schedule: phases of the target, learning rates, steps of learned scales.

    Args:
        schedule: the user's; the one that is followed may differ from it, as ``schedule`` of the course says.

    Attributes:
        schedule: the one that is followed.
        phase: of the current step; ``None`` before the first.
        has_started: whether QAT has.
        is_calibrated: ``False`` after a calibration that failed.
        began: where QAT did.
        given_start: the setting with which it did, or will.

    Example:
        >>> from lq.config.qconfig import QConfig
        >>> entry = CheckpointEntry("model", QConfig(), started=True, began=Began(epochs=2, steps=20), start=2)
        >>> course = Course(QATSchedule(start=5))
        >>> course.resume(entry, trains=True)
        >>> course.has_started, course.began, course.schedule.start
        (True, Began(epochs=2, steps=20), 2)
    """

    def __init__(self, schedule: QATSchedule) -> None:
        self.schedule = schedule
        self.phase: Phase | None = None
        self.has_started, self.is_calibrated = False, True
        self.began: Began | None = None
        self.given_start = schedule.start
        self._rates = InitialLearningRates([])
        self._switch = PhaseSwitch()
        self._scales: list[LearnedScale] = []

    def shorten(self) -> None:
        """Begin at once, for a run of a few steps, which shall try all that a long one does."""
        self.schedule = replace(self.schedule, start=0, freeze_bn=None, observer_off=None)

    def resume(self, entry: CheckpointEntry, trains: bool) -> None:
        """Take up the course of an interrupted run.

        Args:
            entry: of its checkpoint.
            trains: whether it goes on; a validation does not.
        """
        self.has_started, self.is_calibrated, self.began = entry.started, entry.calibrated, entry.began
        if trains and entry.started:
            self.schedule = keep_start(self.schedule, entry.start)
            self.given_start = self.schedule.start

    # ---- before the first step --------------------------------------------------------------------------------------

    def note_rates(self, trainer: Trainer) -> None:
        """Note the initial learning rates, before a checkpoint restores annealed ones."""
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._rates = InitialLearningRates(trainer.optimizers, schedulers)

    def begin(self, trainer: Trainer, target: nn.Module, is_of_float: bool) -> None:
        """Fit the schedule to this training, whose length is known by now.

        Args:
            trainer: before its first step.
            target: prepared.
            is_of_float: whether the training goes on from a checkpoint of the float model.

        Raises:
            ValueError: if schedule and length do not go together.
        """
        here, self._scales = position_of(trainer, 0), learned_scales(target)
        if is_of_float and self.schedule.has_started(here):
            say(
                trainer,
                f"this is a checkpoint of the float model: QAT starts here, after {counted(here.step, 'steps')}",
            )
            self.schedule = start_here(here, self.schedule)
        self.schedule = with_calibration(self.schedule, target)
        if not self.is_calibrated:  # as this run went on before it was interrupted
            self.schedule = self.schedule.without_calibration()
        for note in check_length(trainer, self.schedule):
            rank_zero_warn(f"lq: {note}")
        if not (self.has_started or self.schedule.has_started(here)):
            check_early_stopping(trainer)

    # ---- in training ------------------------------------------------------------------------------------------------

    def phase_at(self, trainer: Trainer, batch_idx: int) -> Phase:
        """What holds for a batch of the current epoch; where QAT began is found once, and part of checkpoints."""
        position = position_of(trainer, batch_idx)
        self.began = self.began or self.schedule.began(position)
        return self.schedule.phase(position, self.began)

    def start(self, trainer: Trainer, module: LightningModule, name: str) -> None:
        """QAT starts with the next step: calibrate, if the schedule says so.

        Args:
            trainer: in training; all processes have to call this.
            module: the LightningModule.
            name: of its target.
        """
        self.has_started, wanted = True, self.schedule
        self.schedule = calibrate_at_start(trainer, module, name, wanted)
        self.is_calibrated = self.schedule == wanted

    def enter(self, trainer: Trainer, target: nn.Module, batch_idx: int) -> Phase:
        """Set what holds for the step of a batch, and say so where it is new.

        Args:
            trainer: in training; all processes have to call this.
            target: prepared.
            batch_idx: of the current epoch.

        Returns:
            the phase.
        """
        before, phase = self.phase, self.phase_at(trainer, batch_idx)
        self._switch.apply(target, phase)
        self._rates.apply(trainer.optimizers, phase.lr_scale)
        self._announce(trainer, target, before, phase)
        self.phase = phase
        return phase

    def _announce(self, trainer: Trainer, target: nn.Module, before: Phase | None, phase: Phase) -> None:
        if before is None and self._rates.first is not None:
            say(trainer, describe_learning_rate(self.schedule, self._rates.first, bool(trainer.lr_scheduler_configs)))
        if before is None or phase.index != before.index:
            normalized = has_batch_norm(target)
            if is_told(phase, before, normalized):
                say(trainer, describe_phase(position_of(trainer, 0), self.schedule, phase, normalized))

    def set_rates(self, trainer: Trainer, batch_idx: int) -> None:
        """Set the learning rates of a step that is to come, for monitors, and over what a scheduler has set."""
        self._rates.apply(trainer.optimizers, self.phase_at(trainer, batch_idx).lr_scale)

    def begin_optimizer_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Set the learning rate again, which a scheduler may have moved since the batch started; train the scales."""
        if self.phase is not None:
            self._rates.apply(trainer.optimizers, self.phase.lr_scale)
            step_scales(self._scales, optimizer, self.phase.scale_lr)

    def end_step(self, target: nn.Module) -> None:
        """Move the ranges by this step."""
        state_of(target).end_of_step()
        self._switch.end_step()

    @property
    def figures(self) -> dict[str, float]:
        """What is logged of the phase."""
        if self.phase is None:
            return {}
        scale = {} if self.phase.lr_scale is None else {"qat/lr_scale": self.phase.lr_scale}
        return {"qat/phase": float(self.phase.index), **scale}

    def stop(self) -> None:
        """Let the target go: nothing is frozen any more."""
        self._scales = []
        self._switch.thaw()
