"""The integer grids of weights and activations: plain frozen data."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from lq.checks import check_flag, check_integer, check_number

WEIGHT_OBSERVERS = ("minmax", "mse")
SIXTEEN_BITS = (0, 65535)  # of activations, and the only grid of more than 8 bits
OBSERVERS = ("moving_average_minmax", "minmax", "histogram", "mse", "percentile", "entropy")


def _check_range(kind: str, quant_min: int, quant_max: int) -> None:
    for name, value, example in (("quant_min", quant_min, 0), ("quant_max", quant_max, 255)):
        check_integer(f"{kind}: {name}", value, example)
    if quant_min >= quant_max:
        raise ValueError(f"{kind}: quant_min={quant_min} must be below quant_max={quant_max}, e.g. 0 and 255.")
    levels = quant_max - quant_min + 1
    sixteen = kind == "activation" and (quant_min, quant_max) == SIXTEEN_BITS
    if not 3 <= levels <= 256 and not sixteen:
        more = f" An activation may have 16: quant_min=0, quant_max={SIXTEEN_BITS[1]}." if kind == "activation" else ""
        raise ValueError(
            f"{kind}: [{quant_min}, {quant_max}] has {levels} levels; 2 to 8 bits are supported "
            f"(3 to 256 levels), e.g. quant_min=-7, quant_max=7 for 4 bits.{more}"
        )


AnyGrid = TypeVar("AnyGrid", bound="GridSpec")


@dataclass(frozen=True)
class GridSpec:
    """A grid that knows which of its settings were given, so that it can be laid on top of another one.

    ``given`` holds their names. It is no field, so that grids with the same settings are equal.

    Example:
        >>> spec = WeightSpec(-63, 63)
        >>> sorted(spec.given), spec == WeightSpec(), sorted(WeightSpec().given)
        (['quant_max', 'quant_min'], True, [])
    """

    given: ClassVar[frozenset[str]] = frozenset()

    def __new__(cls: type[AnyGrid], *args: Any, **kwargs: Any) -> AnyGrid:
        """Remember the names of the arguments; a copy or a pickle brings them along."""
        spec = super().__new__(cls)
        names = [field.name for field in fields(cls)]
        object.__setattr__(spec, "given", frozenset((*names[: len(args)], *kwargs)))
        return spec

    @property
    def bits(self) -> int:
        """Bits that the grid needs."""
        raise NotImplementedError  # pragma: no cover - each kind has it

    def onto(self: AnyGrid, base: AnyGrid) -> AnyGrid:
        """What was given here, and for the rest the settings of ``base``.

        The two ends of the range go together. A range without negative integers is not symmetric, whatever ``base`` is.

        Args:
            base: grid of the same kind.

        Raises:
            ValueError: if the settings do not go together, such as ``symmetric=True`` here and an unsigned range there.

        Example:
            >>> str(WeightSpec(-31, 31).onto(WeightSpec(-7, 7, observer="mse")))
            'int6 [-31, 31] per channel, mse'
            >>> ActivationSpec(observer="histogram").onto(ActivationSpec(0, 15)).quant_max
            15
        """
        names = set(self.given)
        if names & {"quant_min", "quant_max"}:
            names |= {"quant_min", "quant_max"}
            if getattr(self, "quant_min", 0) >= 0:
                names.add("symmetric")
        settings = {f.name: getattr(self if f.name in names else base, f.name) for f in fields(self)}
        return type(self)(**settings)

    def as_given(self) -> dict[str, Any]:
        """The settings that were given, as plain data.

        Example:
            >>> WeightSpec(-7, 7).as_given()
            {'quant_min': -7, 'quant_max': 7}
        """
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in self.given}


@dataclass(frozen=True)
class WeightSpec(GridSpec):
    """Symmetric integer grid of a weight; its scale follows the current weights or is learned.

    Args:
        quant_min: lowest integer; must be ``-quant_max``, so that folding a negative BatchNorm weight loses nothing.
        quant_max: highest integer.
        per_channel: one scale per output channel (the advice of Krishnamoorthi, arXiv:1806.08342) or one per tensor.
        learned_scale: the scale is trained (LSQ, arXiv:1902.08153): what the observer finds times a factor that is a
            parameter in the log domain, 1 at first (:class:`~lq.core.lsq.LearnedScale`).
        observer: ``"minmax"``, the scale that clips nothing, or ``"mse"``, the one with the least squared error. On a
            ResNet18 trained on Fashion-MNIST "mse" is 1.8 dB better at 4 bits, 3.6 at 3 bits and 5.7 at 2 bits, and
            equal from 6 bits on. It takes some 27 times as long: 0.8 s a step (``python -m benchmarks.weight_error``).
            A :class:`~lq.config.qconfig.QConfig` that names no observer uses "mse" for weights of 2 bits.

    Raises:
        ValueError: if the range is not symmetric or holds more than 8 bits, or on an unknown observer.

    Example:
        >>> WeightSpec(quant_min=-7, quant_max=7).bits
        4
    """

    quant_min: int = -63
    quant_max: int = 63
    per_channel: bool = True
    learned_scale: bool = False
    observer: str = "minmax"

    def __post_init__(self) -> None:
        check_flag("weight: per_channel", self.per_channel)
        check_flag("weight: learned_scale", self.learned_scale)
        if self.observer not in WEIGHT_OBSERVERS:
            raise ValueError(f"weight: unknown observer {self.observer!r}; choose one of {list(WEIGHT_OBSERVERS)}.")
        _check_range("weight", self.quant_min, self.quant_max)
        if self.quant_min != -self.quant_max:
            raise ValueError(
                f"weight: [{self.quant_min}, {self.quant_max}] is not symmetric; "
                f"write quant_min={-self.quant_max}, quant_max={self.quant_max}."
            )

    @property
    def bits(self) -> int:
        """Bits that the grid needs."""
        return (self.quant_max - self.quant_min).bit_length()

    def __str__(self) -> str:
        shared_by = "channel" if self.per_channel else "tensor"
        observer = "" if self.observer == "minmax" else f", {self.observer}"
        learned = ", learned scale" if self.learned_scale else ""
        return f"int{self.bits} [{self.quant_min}, {self.quant_max}] per {shared_by}{observer}{learned}"


@dataclass(frozen=True)
class ActivationSpec(GridSpec):
    """Integer grid of an activation, one scale and zero point per tensor, ranges learned by an observer.

    Args:
        quant_min: lowest integer.
        quant_max: highest integer. From 0 to 65535 are 16 bits, which the exporter ``qnn`` alone has; others have 8.
        symmetric: zero point fixed at 0 (needs a signed range), as TensorRT wants it; otherwise affine.
        observer: how the range is found. ``"moving_average_minmax"`` and ``"minmax"`` take the range of all values.
            Four others clip, using a histogram: ``"histogram"`` (least squared error, both ends free), ``"mse"`` (the
            same, both ends shrunk by one factor), ``"percentile"`` and ``"entropy"`` (relative entropy). These are
            meant for :func:`lq.calibrate`; in training they search at every step.
        averaging_constant: weight of the newest batch in the moving average, in (0, 1].
        percentile: share of the values below the upper end and above the lower one, in percent, in (50, 100].
        learned_scale: the scale is trained (LSQ, arXiv:1902.08153): what the observer finds times a factor that is a
            parameter in the log domain, 1 at first (:class:`~lq.core.lsq.LearnedScale`).
        fixed_range: lowest and highest value, where they are known; nothing is observed then. ``None`` observes.

    Raises:
        ValueError: on an unknown observer, an impossible range or a constant outside (0, 1].

    Example:
        >>> str(ActivationSpec())
        'uint8 [0, 255] affine, moving_average_minmax'
    """

    quant_min: int = 0
    quant_max: int = 255
    symmetric: bool = False
    observer: str = "moving_average_minmax"
    averaging_constant: float = 0.01
    percentile: float = 99.99
    learned_scale: bool = False
    fixed_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self._check_fixed_range()
        _check_range("activation", self.quant_min, self.quant_max)
        check_flag("activation: symmetric", self.symmetric)
        check_flag("activation: learned_scale", self.learned_scale)
        if self.quant_min > 0 or self.quant_max < 0:
            raise ValueError(f"activation: [{self.quant_min}, {self.quant_max}] must hold 0; zero has to be exact.")
        if self.symmetric and self.quant_min >= 0:
            raise ValueError("activation: symmetric=True needs a signed range, e.g. quant_min=-128, quant_max=127.")
        if self.observer not in OBSERVERS:
            raise ValueError(f"activation: unknown observer {self.observer!r}; choose one of {list(OBSERVERS)}.")
        if self.observer == "entropy" and self.bits > 8:
            raise ValueError("activation: observer='entropy' is for 8 bits and fewer; write observer='minmax' for 16.")
        check_number("activation: averaging_constant", self.averaging_constant, 0.01)
        check_number("activation: percentile", self.percentile, 99.99)
        if not 0 < self.averaging_constant <= 1:
            raise ValueError(f"activation: averaging_constant={self.averaging_constant} must lie in (0, 1].")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"activation: percentile={self.percentile} must lie in (50, 100], e.g. 99.99.")

    def _check_fixed_range(self) -> None:
        if self.fixed_range is None:
            return
        ends = self.fixed_range
        if not isinstance(ends, (tuple, list)) or len(ends) != 2:
            raise ValueError(f"activation: fixed_range={ends!r} must be two numbers, e.g. [0.0, 1.0].")
        for end in ends:
            check_number("activation: fixed_range", end, 1.0)
            if math.isinf(end):
                raise ValueError(f"activation: fixed_range={list(ends)} must end somewhere, e.g. [0.0, 1.0].")
        if not ends[0] < ends[1]:
            raise ValueError(f"activation: fixed_range={list(ends)} must be the lower end first, e.g. [0.0, 1.0].")
        if not ends[0] <= 0 <= ends[1]:
            raise ValueError(f"activation: fixed_range={list(ends)} must hold 0; zero has to be exact.")
        if self.learned_scale:
            raise ValueError(
                f"activation: fixed_range={list(ends)} and learned_scale=True: a range is known or learned, not both."
            )
        object.__setattr__(self, "fixed_range", (float(ends[0]), float(ends[1])))

    @property
    def bits(self) -> int:
        """Bits that the grid needs."""
        return (self.quant_max - self.quant_min).bit_length()

    def __str__(self) -> str:
        sign = "int" if self.quant_min < 0 else "uint"
        scheme = "symmetric" if self.symmetric else "affine"
        learned = ", learned scale" if self.learned_scale else ""
        found = self.observer if self.fixed_range is None else "from {:g} to {:g}".format(*self.fixed_range)
        return f"{sign}{self.bits} [{self.quant_min}, {self.quant_max}] {scheme}, {found}{learned}"
