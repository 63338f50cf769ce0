"""Position in a training, and points in it that are given as epochs, steps or a fraction."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from lq.checks import shown

Unit = Literal["epochs", "steps", "fraction", "never"]

FORMS = (
    "Write epochs as an int (3), a share of the training as a float in [0, 1] (0.3) or as '30%', "
    "or name the unit: '3 epochs', '500 steps'."
)
_TEXT = re.compile(r"\s*(\d+(?:\.\d*)?)\s*(epochs?|steps?|%)\s*", re.IGNORECASE)
_ROUNDING = 1e-9  # 0.1 + 0.2 of a training is 30% of it


@dataclass(frozen=True)
class Position:
    r"""Where a training stands; a fraction is known as soon as one of the totals is.

    .. math:: \text{fraction} = \max(\text{epoch} / \text{total epochs}, \text{step} / \text{total steps})

    because a training ends at whichever limit comes first.

    Args:
        epoch: finished epochs, including the finished part of the running one (2.5: half of the third epoch).
        step: finished optimizer steps (``trainer.global_step``).
        total_epochs: epochs after which training ends, None if there is no such limit.
        total_steps: steps after which training ends, None if there is no such limit.
        steps_per_epoch: optimizer steps in an epoch, None if unknown.

    Raises:
        ValueError: on negative numbers; write None for "no limit", which Lightning calls -1.

    Example:
        >>> Position(epoch=2.5, step=250, total_epochs=10).fraction
        0.25
    """

    epoch: float
    step: int
    total_epochs: float | None = None
    total_steps: float | None = None
    steps_per_epoch: float | None = None

    def __post_init__(self) -> None:
        for name in ("epoch", "step", "total_epochs", "total_steps", "steps_per_epoch"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                fix = "" if name in ("epoch", "step") else ", or None if it is unlimited or unknown"
                raise ValueError(f"{name}={value!r} is not a position in a training; write 0 or more{fix}.")

    @property
    def fraction(self) -> float | None:
        """Share of the training that is done, in [0, 1], or None while no total is known."""
        return self.share(self.epoch, self.step)

    def share(self, epochs: float | None, steps: float | None) -> float | None:
        """Share of the training that so many epochs and so many steps are, None if it cannot be known."""
        shares = [
            done / total if total else 1.0
            for done, total in ((epochs, self.total_epochs), (steps, self.total_steps))
            if done is not None and total is not None
        ]
        return min(max(shares), 1.0) if shares else None

    @property
    def last_step(self) -> float | None:
        """Optimizer steps of the whole training, None if unknown."""
        limits = [] if self.total_steps is None else [self.total_steps]
        if self.total_epochs is not None and self.steps_per_epoch is not None:
            limits.append(self.total_epochs * self.steps_per_epoch)
        return min(limits) if limits else None


@dataclass(frozen=True)
class Point:
    """A moment of a training in one unit.

    Args:
        value: number of epochs or steps that are over, or the share of the training that is.
        unit: ``"epochs"``, ``"steps"``, ``"fraction"`` or ``"never"``.

    Example:
        >>> Point.parse("start", "500 steps")
        Point(value=500.0, unit='steps')
        >>> Point.parse("start", 3).reached(Position(epoch=3, step=120))
        True
    """

    value: float
    unit: Unit

    @classmethod
    def parse(cls, name: str, raw: int | float | str, never: bool = False) -> Point:
        """Read a point from its YAML form.

        Args:
            name: what the point is for; errors start with it.
            raw: int (epochs), float in [0, 1] (share of the training), or text such as ``"3 epochs"``,
                ``"500 steps"``, ``"30%"``.
            never: whether ``"never"`` is allowed too.

        Returns:
            The point.

        Raises:
            TypeError: if ``raw`` is neither int, float nor str (a bool is none of them here).
            ValueError: on an unknown unit, a negative number or a share outside [0, 1].
        """
        if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
            raise TypeError(f"{name}={shown(raw)} ({type(raw).__name__}) is not a point of a training. {FORMS}")
        if isinstance(raw, str):
            return cls._from_text(name, raw, never)
        if raw < 0 or raw != raw:
            raise ValueError(f"{name}={raw!r} is not a point of a training: it must be 0 or more. {FORMS}")
        if isinstance(raw, int):
            return cls(float(raw), "epochs")
        if raw > 1:
            epochs = f"{raw:g}" if raw < math.inf else "3"
            raise ValueError(
                f"{name}={raw!r}: a float is a share of the training, in [0, 1]. "
                f"For epochs write {name}='{epochs} epochs'."
            )
        return cls(raw, "fraction")

    @classmethod
    def _from_text(cls, name: str, raw: str, never: bool) -> Point:
        if never and raw.strip().lower() == "never":
            return cls(math.inf, "never")
        match = _TEXT.fullmatch(raw)
        if match is None:
            also = " Or 'never'." if never else ""
            raise ValueError(f"{name}={raw!r} is not a point of a training. {FORMS}{also}")
        value, unit = float(match[1]), match[2].lower()
        if unit == "%":
            if value > 100:
                raise ValueError(f"{name}={raw!r}: a share of the training is at most 100%.")
            return cls(value / 100, "fraction")
        return cls(value, "epochs" if unit.startswith("epoch") else "steps")

    def reached(self, position: Position) -> bool:
        """Whether this moment has come.

        Args:
            position: where the training stands.

        Returns:
            True from the first step on that starts at or after the point.

        Raises:
            ValueError: if the point is a fraction and the length of the training is unknown.
        """
        if self.unit == "never":
            return False
        if self.unit == "fraction":
            fraction = position.fraction
            if fraction is None:
                raise ValueError(f"{self} needs a training that ends: set max_epochs or max_steps.")
            return fraction >= self.value - _ROUNDING
        return (position.epoch if self.unit == "epochs" else position.step) >= self.value - _ROUNDING

    def fraction_of(self, length: Position) -> float | None:
        """The point as a share of a training of this length.

        Args:
            length: any position of the training; its totals and ``steps_per_epoch`` are used.

        Returns:
            The share, in [0, 1] (1 also for points behind the end), or None if the units cannot be converted.
        """
        if self.unit in ("fraction", "never"):
            return min(self.value, 1.0)
        if self.value == 0:
            return length.share(0, 0) or 0.0
        per_epoch = length.steps_per_epoch
        if self.unit == "epochs":
            return length.share(self.value, None if per_epoch is None else self.value * per_epoch)
        return length.share(self.value / per_epoch if per_epoch else None, self.value)

    def first_step(self, length: Position) -> int | None:
        """Number of the first optimizer step for which the point is reached, None if it cannot be known.

        Args:
            length: any position of the training; its totals and ``steps_per_epoch`` are used.

        Returns:
            Steps that are over by then; at least the total if the training ends first.
        """
        share, total = self.fraction_of(length), length.last_step
        return None if share is None or total is None else math.ceil((share - _ROUNDING) * total)

    def __str__(self) -> str:
        if self.unit == "fraction":
            return f"{self.value * 100:g}% of the training"
        return "never" if self.unit == "never" else f"{self.value:g} {self.unit}"
