"""What ``auto_bits`` may be told."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lq.analysis.bits.budget import LATENCY, Budget
from lq.analysis.bits.layers import FLOAT
from lq.checks import as_dataclass, check_integer, check_number, shown

_WIDTHS, _TIMED = (2, 3, 4, 5, 6, 8), (8, FLOAT)


@dataclass(frozen=True)
class AutoBits:
    """How many bits weights and activations may have, and what they may cost together.

    Args:
        budget: ``size=2.5MB``, of the deployed model's tensors: weights as stored, everything else in float32;
            ``effective_bits=5``, stored bits of a quantized weight in the mean; or ``latency=0.6@onnx``, of a call with
            one sample on one thread of this machine: a part of the float model's latency, or ``latency=2.5ms@onnx``.
        widths: bits that a layer may have, from 2 to 8, and 32 for float. 8 is the weight grid of the preset. ``None``
            is 2, 3, 4, 5, 6 and 8. A latency leaves the choice between 8 and 32: int8 kernels take the same time for
            fewer bits.
        batches: validation batches to measure on; they are kept in memory.
        resume_file: JSON file in which every measured loss is kept at once. It serves other budgets as well, and an
            interrupted search goes on from it.
        activation_bits: bits of an activation's value, in the mean over all rounded values of a call: the bits of each
            activation are chosen, too, from the ``widths`` up to 8. ``None`` leaves them as the qconfig says. Not for a
            latency.

    Raises:
        TypeError: if a setting is no number, or the budget no text.
        ValueError: if the budget cannot be read, or a width is out of range.

    Example:
        >>> AutoBits("size=2.5MB").allowed, AutoBits("latency=0.6@onnx").allowed
        ((2, 3, 4, 5, 6, 8), (8, 32))
    """

    budget: str = "effective_bits=4"
    widths: tuple[int, ...] | None = None
    batches: int = 2
    resume_file: str | os.PathLike[str] | None = None
    activation_bits: float | None = None

    def __post_init__(self) -> None:
        limits_time = Budget.parse(self.budget).kind == LATENCY
        check_integer("auto_bits: batches", self.batches, 2, least=1)
        if self.widths is not None:
            _check_widths(self.widths)
            object.__setattr__(self, "widths", tuple(sorted(set(self.widths))))
            self._check_choice(limits_time)
        self._check_activations(limits_time)

    def _check_choice(self, limits_time: bool) -> None:
        assert self.widths is not None
        if limits_time and self.widths != _TIMED:
            raise ValueError(
                f"auto_bits: widths={list(self.widths)} with {self.budget}: int8 kernels take the same time for fewer "
                "bits, so a latency leaves the choice between 8 and 32, float. Leave widths out, or limit the size."
            )
        if min(self.widths, default=FLOAT) == FLOAT:
            raise ValueError(f"auto_bits: widths={list(self.widths)} leave no choice; write e.g. [2, 4, 8].")

    def _check_activations(self, limits_time: bool) -> None:
        if self.activation_bits is None:
            return
        check_number("auto_bits: activation_bits", self.activation_bits, 4)
        if limits_time:
            raise ValueError(
                f"auto_bits: activation_bits={self.activation_bits} with {self.budget}: int8 kernels take the same "
                "time for fewer bits. Leave it out, or limit the size."
            )
        if FLOAT in self.allowed:
            raise ValueError(
                f"auto_bits: widths={list(self.allowed)} with activation_bits={self.activation_bits}: the activations "
                f"around a layer in float are not rounded. Leave {FLOAT} out of the widths."
            )
        least = min(self.allowed)
        if not least <= self.activation_bits < 8:
            raise ValueError(
                f"auto_bits: activation_bits={self.activation_bits} must be at least {least}, the smallest of the "
                "widths, and less than 8, which all activations have without it."
            )

    @property
    def allowed(self) -> tuple[int, ...]:
        """The widths that the search tries, in ascending order."""
        return self.widths or (_TIMED if Budget.parse(self.budget).kind == LATENCY else _WIDTHS)


def as_auto_bits(given: str | AutoBits | Mapping[str, Any] | None) -> AutoBits:
    """The settings; text is a budget.

    Raises:
        TypeError: if it is something else.
        ValueError: if a setting does not exist or is out of range.

    Example:
        >>> as_auto_bits("size=2.5MB").budget
        'size=2.5MB'
    """
    if isinstance(given, str):
        return AutoBits(given)
    if given is None or isinstance(given, (AutoBits, Mapping)):
        return as_dataclass(AutoBits, given, "auto_bits")
    raise TypeError(f"auto_bits={shown(given)} ({type(given).__name__}) must be a budget, e.g. 'effective_bits=4'.")


def _check_widths(widths: Any) -> None:
    if isinstance(widths, str) or not isinstance(widths, Sequence):
        raise TypeError(f"auto_bits: widths={shown(widths)} must be a list of bits, e.g. [2, 4, 8].")
    for width in widths:
        check_integer("auto_bits: a width", width, 4)
        if not (2 <= width <= 8 or width == FLOAT):
            raise ValueError(f"auto_bits: width {width} must be from 2 to 8 bits, or {FLOAT} for float.")
