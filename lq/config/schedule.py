"""When quantization starts, BatchNorm freezes and observers stop, and how the learning rate falls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lq.checks import check_integer, check_number
from lq.config.points import Point, Position
from lq.messages import counted

__all__ = ["Began", "Phase", "Position", "QATSchedule"]

# The static quantization tutorial trains 8 epochs, freezes BatchNorm after epoch 2 (from epoch 3 on, counted
# from 0) and switches the observers off after epoch 3 (from epoch 4 on).
_FREEZE_BN_SHARE = 3 / 8
_OBSERVER_OFF_SHARE = 4 / 8

_NAMES = ("float", "observe", "bn frozen", "observers off", "observers off, bn frozen")


@dataclass(frozen=True)
class Phase:
    """What holds during a training step.

    Args:
        fake_quant: weights and activations are fake-quantized.
        observer: observers follow the ranges of the activations.
        freeze_bn: BatchNorm uses its running statistics and no longer updates them.
        lr_scale: factor on every initial learning rate of the optimizers, None to leave them alone.
        scale_lr: relative change of every learned scale in this step, None to leave them to the optimizers.

    Example:
        >>> Phase(fake_quant=True, observer=True, freeze_bn=False).name
        'observe'
    """

    fake_quant: bool
    observer: bool
    freeze_bn: bool
    lr_scale: float | None = None
    scale_lr: float | None = None

    @property
    def index(self) -> int:
        """Number of the phase for a logger: 0 float, 1 observe, 2 bn frozen, 3 observers off, 4 both."""
        return 0 if not self.fake_quant else 1 + self.freeze_bn + 2 * (not self.observer)

    @property
    def name(self) -> str:
        """Short name for the progress bar and the log."""
        return _NAMES[self.index]


class Began(NamedTuple):
    """Where QAT began: epochs and optimizer steps that were over by then.

    Example:
        >>> QATSchedule(start=2).began(Position(epoch=3, step=45))  # an epoch later: 15 steps each
        Began(epochs=2.0, steps=30.0)
    """

    epochs: float
    steps: float


@dataclass(frozen=True)
class QATSchedule:
    r"""The course of a quantization-aware training as a pure function of progress.

    A point is an int (epochs that are over, so 3 means from the fourth epoch on), a float in [0, 1] (share
    of the whole training) or text: ``"3 epochs"``, ``"500 steps"``, ``"30%"``. Steps are those of the optimizers,
    as ``trainer.global_step`` counts them. With :math:`p` the share of the part after ``start`` that is done, the
    learning rate is the initial one times

    .. math:: \text{lr} \cdot (\text{lr_final} + (1 - \text{lr_final}) \cdot (1 + \cos \pi p) / 2)

    Args:
        start: when fake quantization and observers begin; before that the training is an ordinary float training.
        freeze_bn: when BatchNorm statistics freeze, ``"never"``, or None for 3/8 of the part after ``start``.
        observer_off: when observers stop, ``"never"``, or None for 1/2 of the part after ``start``, and for ``start``
            itself if ranges are calibrated there.
        lr: learning rate at ``start`` as a share of the optimizer's initial one, in (0, 1]; None leaves it to the
            schedulers of the module.
        lr_final: learning rate at the end of training as a share of the one at ``start``, in [0, 1].
        scale_lr: relative change of every learned scale in a step at ``start``, in [0, 1]; it falls as the learning
            rate does, or stays with ``lr=None``. None leaves the scales to the optimizers, at the rate of the weights.
        calibration: number of training batches from whose histograms the ranges of the activations are found at
            ``start``; 0 for none, None for 32 if an activation has fewer than 8 bits or a weight fewer than the preset.

    Raises:
        TypeError: if a value has the wrong type.
        ValueError: if a value is out of range or has an unknown unit, or if the points are in an impossible order.

    Source:
        Points: the static quantization tutorial of PyTorch. Learning rate: Wu et al., arXiv:2004.09602.

    Example:
        >>> schedule = QATSchedule(start=2, freeze_bn=5, observer_off=6)
        >>> [schedule.phase(Position(epoch, 0, total_epochs=10)).name for epoch in (1, 2, 5, 6)]
        ['float', 'observe', 'bn frozen', 'observers off, bn frozen']
        >>> round(schedule.phase(Position(6, 0, total_epochs=10)).lr_scale, 6)
        0.00505
    """

    start: int | float | str = 0
    freeze_bn: int | float | str | None = None
    observer_off: int | float | str | None = None
    lr: float | None = 0.01
    lr_final: float = 0.01
    scale_lr: float | None = 0.003
    calibration: int | None = None

    def __post_init__(self) -> None:
        if self.calibration is not None:
            check_integer("calibration", self.calibration, 32)
            if self.calibration < 0:
                raise ValueError(f"calibration={self.calibration} must be 0 (none) or more batches, e.g. 32.")
        start = Point.parse("start", self.start)
        if start.unit == "fraction" and start.value == 1:
            raise ValueError(f"start={self.start!r} is the end of the training; for epoch one write 1.")
        for name, point in self._later_points():
            if point.unit == start.unit:
                self._check_order(name, point.value, start.value)
        if self.lr is not None:
            _check_share("lr", self.lr, "the optimizer's initial learning rate (None leaves that alone)")
            if self.lr == 0:
                raise ValueError("lr=0 trains nothing; write a share in (0, 1] such as 0.01, or None.")
        _check_share("lr_final", self.lr_final, "the learning rate at start")
        if self.scale_lr is not None:
            _check_share("scale_lr", self.scale_lr, "every learned scale, by which a step changes it", 0.003)

    def check(
        self,
        total_epochs: float | None = None,
        total_steps: float | None = None,
        steps_per_epoch: float | None = None,
        counted_later: bool = False,
        epochs: Sequence[float] = (),
    ) -> tuple[str, ...]:
        """Check the points against the length of a training, before its first step.

        Args:
            total_epochs: epochs after which training ends, None if there is no such limit.
            total_steps: optimizer steps after which training ends, None if there is no such limit.
            steps_per_epoch: optimizer steps in an epoch, None if unknown; converts between the units.
            counted_later: an epoch ends, and only its number of steps is unknown until it was trained;
                ``steps_per_epoch`` is that of the first one, and says what is to be expected.
            epochs: optimizer steps in each epoch, where they differ and are known.

        Returns:
            Remarks worth a warning: points that this training never reaches, or that nobody knows whether it does.

        Raises:
            ValueError: if a point is a share of a training that has no end, if ``start`` is not before the end, or if
                another point is before ``start``.

        Example:
            >>> QATSchedule(observer_off=9).check(total_epochs=5)
            ('observer_off=9 is never reached: the training ends after 5 epochs.',)
        """
        expected = Position(0, 0, total_epochs, total_steps, steps_per_epoch)
        length = replace(expected, steps_per_epoch=None) if counted_later else expected
        start, end = Point.parse("start", self.start), _describe_end(length)
        is_unknown = counted_later and start.fraction_of(length) is None
        if self._needs_end():
            self._start_share(length, Began(0, 0) if is_unknown else None)
        if _is_over(start, length):
            raise ValueError(
                f"start={self.start!r}, but the training ends after {end}: nothing would be quantized. "
                "Start earlier or train longer."
            )
        is_doubtful = is_unknown and (steps_per_epoch is None or _is_over(start, expected))
        notes = [_unknown_end("start", self.start, end)] if is_doubtful and end else []
        for name, point in self._later_points():
            pair = _in_one_unit(point, start, length, epochs)
            if pair is not None:
                self._check_order(name, *pair)
            if point.unit in ("epochs", "steps") and _is_over(point, length):
                raw = getattr(self, name)
                notes.append(f"{name}={raw!r} is never reached: the training ends after {end}.")
        return tuple(notes)

    def check_start(self, phase: Phase) -> None:
        """Check the first phase of QAT, of a target without ranges; not all schedules can be checked beforehand.

        Args:
            phase: that of the first step of QAT.

        Raises:
            ValueError: if observers are off already.
        """
        if not phase.observer and not self.calibration:
            raise ValueError(
                f"observer_off={self.observer_off!r} with start={self.start!r}: QAT starts now, and the observers have "
                "stopped before; they would never see a batch. Give both points in the same unit, epochs or steps."
            )

    def without_calibration(self) -> QATSchedule:
        """The schedule with observers that find the ranges in training.

        Example:
            >>> QATSchedule(start=2, observer_off=2, calibration=32).without_calibration().observer_off is None
            True
        """
        held = self.calibration and self.observer_off is not None and self.observer_off == self.start
        return replace(self, calibration=0, observer_off=None if held else self.observer_off)

    def has_started(self, position: Position) -> bool:
        """Whether QAT has begun at this position.

        Example:
            >>> QATSchedule(start="3 steps").has_started(Position(epoch=0.5, step=2))
            False
        """
        return Point.parse("start", self.start).reached(position)

    def began(self, position: Position) -> Began | None:
        """Where QAT began, seen from a position of the training, best from the first one after ``start``.

        It has to be kept then. Epochs may have different numbers of steps, and how many is known only of those that are
        over, so a start in one unit is converted to the other one by the steps and epochs until now. And a run that was
        resumed may be a longer training, of which a start that is a share comes later.

        Args:
            position: where the training stands.

        Returns:
            None before the start.

        Example:
            >>> QATSchedule(start="20 steps").began(Position(epoch=2.5, step=20))
            Began(epochs=2.5, steps=20.0)
        """
        start = Point.parse("start", self.start)
        if not start.reached(position):
            return None
        if start.unit == "fraction":
            return Began(position.epoch, position.step)
        per_epoch = position.step / position.epoch if position.epoch else 0.0
        if start.unit == "epochs":
            return Began(start.value, start.value * per_epoch)
        return Began(start.value / per_epoch if per_epoch else position.epoch, start.value)

    def phase(self, position: Position, began: Began | None = None) -> Phase:
        """What holds for the step that begins at this position.

        Args:
            position: where the training stands; the same position always gives the same phase.
            began: what :meth:`began` gave when QAT began, which then is on, wherever ``start`` is; None goes by
                ``start``, converted by ``position.steps_per_epoch``.

        Returns:
            The phase.

        Raises:
            ValueError: if the position lacks a total that a point or the learning rate needs; :meth:`check`
                finds that before the training starts.
        """
        if began is None and not self.has_started(position):
            return Phase(fake_quant=False, observer=False, freeze_bn=False)
        annealing = self._annealing(position, began)
        return Phase(
            fake_quant=True,
            observer=not self._resolve("observer_off", _OBSERVER_OFF_SHARE, position, began).reached(position),
            freeze_bn=self._resolve("freeze_bn", _FREEZE_BN_SHARE, position, began).reached(position),
            lr_scale=None if self.lr is None else self.lr * annealing,
            scale_lr=None if self.scale_lr is None else self.scale_lr * annealing,
        )

    def _annealing(self, position: Position, began: Began | None) -> float:
        """Factor on the learning rates at ``start``."""
        if self.lr is None:
            return 1.0
        start = self._start_share(position, began)
        done = position.fraction or 0.0
        part = max(done - start, 0.0) / (1 - start) if start < 1 else 1.0
        return self.lr_final + (1 - self.lr_final) * (1 + math.cos(math.pi * part)) / 2

    def _resolve(self, name: str, default_share: float, position: Position, began: Began | None) -> Point:
        raw: int | float | str | None = getattr(self, name)
        if raw is not None:
            return Point.parse(name, raw, never=True)
        if name == "observer_off" and self.calibration:
            return Point(0.0, "epochs")  # in place of the start, which has been reached by whoever asks
        start = self._start_share(position, began)
        return Point(start + default_share * (1 - start), "fraction")

    def _start_share(self, length: Position, began: Began | None = None) -> float:
        """Where QAT starts in a training that must have an end."""
        if length.fraction is None:
            raise ValueError(
                f"{', '.join(self._needs_end())}: a share of the training needs its end. Set max_epochs or "
                "max_steps in the Trainer, or give the points in epochs or steps and lr=None."
            )
        start = Point.parse("start", self.start)
        share = start.fraction_of(length) if began is None else length.share(*began)
        if began is not None and share is not None and start.unit == "fraction":
            share = min(share, start.value)  # as it was wanted: QAT begins with the first step behind it
        if share is None:
            raise ValueError(
                f"start={self.start!r} cannot be compared with the end of the training, after "
                f"{_describe_end(length)}, because the steps in an epoch are unknown. "
                "Give start in the unit of the limit, or as a share such as start=0.2."
            )
        return share

    def _needs_end(self) -> list[str]:
        """The settings that only mean something in a training that ends."""
        points = {"start": self.start, "freeze_bn": self.freeze_bn, "observer_off": self.observer_off}
        if self.calibration and self.observer_off is None:
            del points["observer_off"]  # which is start
        found = [
            f"{name}={raw!r}"
            for name, raw in points.items()
            if raw is None or Point.parse(name, raw, never=True).unit == "fraction"
        ]
        return found if self.lr is None else [*found, f"lr={self.lr!r}"]

    def _later_points(self) -> list[tuple[str, Point]]:
        points = (("freeze_bn", self.freeze_bn), ("observer_off", self.observer_off))
        return [(name, Point.parse(name, raw, never=True)) for name, raw in points if raw is not None]

    def _check_order(self, name: str, value: float, start: float) -> None:
        problem = f"{name}={getattr(self, name)!r} with start={self.start!r}"
        if value < start:
            raise ValueError(f"{problem}: it lies before the start. Make it later, or start earlier.")
        if value == start and name == "observer_off" and not self.calibration:
            raise ValueError(
                f"{problem}: observers would never see a batch. Make it later, or 'never', or let the ranges be "
                "calibrated there: calibration=32."
            )


def _check_share(name: str, value: float, of: str, usual: float = 0.01) -> None:
    check_number(name, value, usual)
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r} is outside [0, 1]; it is a share of {of}, e.g. {name}={usual}.")


def _in_steps(point: Point, epochs: Sequence[float]) -> float:
    """A point in epochs or steps, in steps, where epochs have so many."""
    if point.unit == "steps":
        return point.value
    whole = int(min(point.value, len(epochs)))
    return sum(epochs[:whole]) + (point.value - whole) * (epochs[whole] if whole < len(epochs) else 0)


def _describe_end(length: Position) -> str:
    ends = ((length.total_epochs, "epochs"), (length.total_steps, "steps"))
    told = " or ".join(counted(total, unit) for total, unit in ends if total is not None)
    is_converted = length.total_steps is None and length.last_step is not None
    return f"{told} ({counted(length.last_step or 0, 'steps')})" if is_converted else told


def _unknown_end(name: str, raw: int | float | str, end: str) -> str:
    return (
        f"{name}={raw!r}: whether that is before the end of the training, after {end}, shows only in training, because "
        "the number of optimizer steps in an epoch is unknown. A start in the unit of the limit would be checked now."
    )


def _is_over(point: Point, length: Position) -> bool:
    """Whether the training ends before it reaches the point."""
    first, total = point.first_step(length), length.last_step
    if first is not None and total is not None and first >= total:
        return True
    return (point.fraction_of(length) or 0.0) >= 1


def _in_one_unit(
    point: Point, start: Point, length: Position, epochs: Sequence[float] = ()
) -> tuple[float, float] | None:
    """The values of both points in a common unit, None if the length does not allow that."""
    if length.steps_per_epoch is None and {point.unit, start.unit} == {"epochs", "steps"}:
        return (_in_steps(point, epochs), _in_steps(start, epochs)) if epochs else None
    steps = point.first_step(length), start.first_step(length)
    if steps[0] is not None and steps[1] is not None:
        return steps[0], steps[1]
    shares = point.fraction_of(length), start.fraction_of(length)
    return None if shares[0] is None or shares[1] is None else (shares[0], shares[1])
