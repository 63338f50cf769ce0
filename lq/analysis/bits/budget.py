"""What a choice of bits may cost: bytes, or bits for each weight."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from lq.checks import shown

SIZE, EFFECTIVE_BITS = "size", "effective_bits"
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_WRITTEN = re.compile(r"\s*(\w+)\s*=\s*([0-9.]+(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*")
_EXAMPLES = "size=2.5MB (B, kB, MB, GB, KiB, MiB or GiB) or effective_bits=5"


@dataclass(frozen=True)
class Budget:
    """The most that the weights of a network may cost.

    Args:
        kind: "size", of the whole model, or "effective_bits", the mean of all quantized weights.
        amount: bytes, or bits.

    Example:
        >>> Budget.parse("size=2.5MB"), str(Budget.parse("effective_bits=5"))
        (Budget(kind='size', amount=2500000.0), 'effective_bits=5')
        >>> Budget.parse("latency=2ms")
        Traceback (most recent call last):
        ...
        ValueError: budget='latency=2ms' is neither a size nor effective_bits; write size=2.5MB ... or effective_bits=5.
    """

    kind: Literal["size", "effective_bits"]
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """A budget as it is written in a configuration.

        Args:
            text: such as ``size=2.5MB`` or ``effective_bits=5``.

        Raises:
            TypeError: if it is no text.
            ValueError: if it names something else, another unit, or no positive number.
        """
        if not isinstance(text, str):
            raise TypeError(f"budget={shown(text)} ({type(text).__name__}) must be text: write {_EXAMPLES}.")
        found = _WRITTEN.fullmatch(text)
        if found is None:
            raise ValueError(f"budget={text!r} is no budget; write {_EXAMPLES}.")
        kind, number, unit = found.groups()
        if kind == SIZE and unit not in _BYTES:
            problem = f"the unknown unit {unit!r}" if unit else "no unit"
            raise ValueError(f"budget={text!r} has {problem}; write {_EXAMPLES}.")
        if kind == EFFECTIVE_BITS and unit not in ("", "bits"):
            raise ValueError(f"budget={text!r} has the unknown unit {unit!r}; write {_EXAMPLES}.")
        if kind not in (SIZE, EFFECTIVE_BITS):
            raise ValueError(f"budget={text!r} is neither a size nor effective_bits; write {_EXAMPLES}.")
        try:
            amount = float(number) * (_BYTES[unit] if kind == SIZE else 1)
        except ValueError:
            raise ValueError(f"budget={text!r} contains no number; write {_EXAMPLES}.") from None
        if not 0 < amount < math.inf:
            raise ValueError(f"budget={text!r} must be above 0; write {_EXAMPLES}.")
        return cls("size" if kind == SIZE else "effective_bits", amount)

    def __str__(self) -> str:
        return written(self.kind, self.amount)


def written(kind: str, amount: float) -> str:
    """An amount as a budget says it.

    Example:
        >>> written("size", 123_456), written("effective_bits", 4.5)
        ('size=0.123456MB', 'effective_bits=4.5')
    """
    return f"size={amount / 1e6:.9g}MB" if kind == SIZE else f"effective_bits={amount:.9g}"
