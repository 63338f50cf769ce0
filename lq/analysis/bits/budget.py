"""What a choice of bits may cost: bytes, bits for each weight, or time."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from lq.checks import shown

SIZE: Literal["size"] = "size"
EFFECTIVE_BITS: Literal["effective_bits"] = "effective_bits"
LATENCY: Literal["latency"] = "latency"
RUNTIMES = ("torch", "onnx", "openvino")  # which this machine can time, and which load a float model, too
_UNITS: dict[str, dict[str, float]] = {
    SIZE: {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    EFFECTIVE_BITS: {"": 1, "bits": 1},
    LATENCY: {"": 1, "us": 1e-3, "ms": 1, "s": 1e3},
}
_WRITTEN = re.compile(r"\s*(\w+)\s*=\s*([0-9.]+(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*(?:@\s*(\w+)\s*)?")
_EXAMPLES = (
    "size=2.5MB (B, kB, MB, GB, KiB, MiB or GiB), effective_bits=5, or latency=0.6@onnx, which is a part of the float "
    "model's (or latency=2.5ms@onnx; torch, onnx or openvino)"
)


@dataclass(frozen=True)
class Budget:
    """The most that a network may cost.

    Args:
        kind: "size", of the whole model; "effective_bits", the mean of all quantized weights; or "latency" of a call
            with one sample on one thread.
        amount: bytes, bits, milliseconds, or a part of the latency of the float model.
        runtime: of a latency: "torch", "onnx" or "openvino".
        relative: whether a latency is a part of the float model's in the same runtime.

    Example:
        >>> Budget.parse("size=2.5MB").amount, str(Budget.parse("effective_bits=5"))
        (2500000.0, 'effective_bits=5')
        >>> Budget.parse("latency=0.6@openvino")
        Budget(kind='latency', amount=0.6, runtime='openvino', relative=True)
        >>> Budget.parse("latency=2ms")
        Traceback (most recent call last):
        ...
        ValueError: budget='latency=2ms' does not say in which runtime; write latency=2ms@torch, latency=2ms@onnx or ...
    """

    kind: Literal["size", "effective_bits", "latency"]
    amount: float
    runtime: str | None = None
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> Budget:
        """A budget as it is written in a configuration.

        Args:
            text: such as ``size=2.5MB``, ``effective_bits=5``, ``latency=0.6@onnx`` or ``latency=2.5ms@openvino``.

        Raises:
            TypeError: if it is no text.
            ValueError: if it names something else, another unit or runtime, or no positive number.
        """
        if not isinstance(text, str):
            raise TypeError(f"budget={shown(text)} ({type(text).__name__}) must be text: write {_EXAMPLES}.")
        found = _WRITTEN.fullmatch(text)
        if found is None:
            raise ValueError(f"budget={text!r} is no budget; write {_EXAMPLES}.")
        named, number, unit, runtime = found.groups()
        kind = next((kind for kind in (SIZE, EFFECTIVE_BITS, LATENCY) if kind == named), None)
        if kind is None:
            raise ValueError(f"budget={text!r} is neither a size, effective_bits nor a latency; write {_EXAMPLES}.")
        if unit not in _UNITS[kind]:
            problem = f"the unknown unit {unit!r}" if unit else "no unit"
            raise ValueError(f"budget={text!r} has {problem}; write {_EXAMPLES}.")
        _check_runtime(text, kind, runtime)
        try:
            amount = float(number) * _UNITS[kind][unit]
        except ValueError:
            raise ValueError(f"budget={text!r} contains no number; write {_EXAMPLES}.") from None
        if not 0 < amount < math.inf:
            raise ValueError(f"budget={text!r} must be above 0; write {_EXAMPLES}.")
        return cls(kind, amount, runtime, relative=kind == LATENCY and not unit)

    def __str__(self) -> str:
        return self.written(self.amount)

    def written(self, amount: float) -> str:
        """Another amount as a budget of this kind says it.

        Example:
            >>> Budget("size", 1).written(123_456), Budget("effective_bits", 1).written(4.5)
            ('size=0.123456MB', 'effective_bits=4.5')
        """
        if self.kind == SIZE:
            return f"size={amount / 1e6:.9g}MB"
        if self.kind == EFFECTIVE_BITS:
            return f"effective_bits={amount:.9g}"
        return f"latency={amount:.4g}{'' if self.relative else 'ms'}@{self.runtime}"


def _check_runtime(text: str, kind: str, runtime: str | None) -> None:
    if kind != LATENCY and runtime is not None:
        raise ValueError(f"budget={text!r} names a runtime, which only a latency has; write {_EXAMPLES}.")
    if kind != LATENCY or runtime in RUNTIMES:
        return
    amount = text.partition("@")[0].strip()
    written = " or ".join((", ".join(f"{amount}@{name}" for name in RUNTIMES[:-1]), f"{amount}@{RUNTIMES[-1]}"))
    what = "does not say in which runtime" if runtime is None else f"names the runtime {runtime!r}, which is not timed"
    raise ValueError(f"budget={text!r} {what}; write {written}.")
