"""Plain data out of a file that anybody may have written: typed fields, or one error that names file and field."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_REMEDY = "The file was changed or damaged; get a new copy of it."
_LARGEST = 2**63 - 1
_DEEPEST = 100


def parse_json(text: str | bytes, where: str) -> Any:
    """Read JSON strictly: no NaN, no infinity, no name twice, no nesting without end.

    Args:
        text: the JSON.
        where: the file, for the message.

    Raises:
        ValueError: if it is not JSON, or is more than this.

    Example:
        >>> parse_json('{"a": 1e999}', "lq.json")
        Traceback (most recent call last):
        ...
        ValueError: lq.json is not valid JSON (the number 1e999 is not finite). The file was changed or damaged; ...
    """
    try:
        found = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
        _check_depth(found, _DEEPEST)
    except RecursionError:
        raise ValueError(f"{where} is not valid JSON (it is nested too deeply). {_REMEDY}") from None
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON ({error}). {_REMEDY}") from None
    return found


@dataclass(frozen=True)
class Field:
    """A value and where it comes from.

    Args:
        value: plain data.
        where: file and path to the value in it.

    Example:
        >>> shape = Field({"shape": [1, "two"]}, "lq.json: inputs[0]")["shape"]
        >>> [size.integer(0) for size in shape.each()]
        Traceback (most recent call last):
        ...
        ValueError: lq.json: inputs[0].shape[1] is 'two', but must be a whole number of 0 or more. The file was ...
    """

    value: Any
    where: str

    def error(self, wanted: str) -> ValueError:
        """What to raise for a value that is not what is wanted."""
        shown = repr(self.value) if isinstance(self.value, (str, int, float, bool, type(None))) else ""
        got = shown[:60] + "..." if len(shown) > 63 else shown or f"a {type(self.value).__name__}"
        return ValueError(f"{self.where} is {got}, but must be {wanted}. {_REMEDY}")

    def __getitem__(self, key: str) -> Field:
        """An entry, which must be there."""
        entries = self.mapping()
        if key not in entries:
            raise ValueError(f"{self.where} lacks {key!r}. {_REMEDY}")
        return Field(entries[key], f"{self.where}.{key}")

    def get(self, key: str, default: Any) -> Field:
        """An entry, or a default where it is missing."""
        return Field(self.mapping().get(key, default), f"{self.where}.{key}")

    def mapping(self) -> dict[str, Any]:
        """The value, which must be a mapping with text as keys."""
        if not isinstance(self.value, Mapping) or not all(isinstance(key, str) for key in self.value):
            raise self.error("a mapping with text as keys")
        return dict(self.value)

    def items(self) -> Iterator[tuple[str, Field]]:
        """The entries of a mapping."""
        for key, value in self.mapping().items():
            yield key, Field(value, f"{self.where}.{key}")

    def each(self) -> list[Field]:
        """The entries of a list."""
        if not isinstance(self.value, Sequence) or isinstance(self.value, (str, bytes)):
            raise self.error("a list")
        return [Field(value, f"{self.where}[{index}]") for index, value in enumerate(self.value)]

    def text(self) -> str:
        """The value, which must be text."""
        if not isinstance(self.value, str):
            raise self.error("text")
        return self.value

    def flag(self) -> bool:
        """The value, which must be a boolean."""
        if not isinstance(self.value, bool):
            raise self.error("true or false")
        return self.value

    def integer(self, lowest: int = -_LARGEST, highest: int = _LARGEST) -> int:
        """The value, which must be a whole number in a range."""
        whole = isinstance(self.value, int) and not isinstance(self.value, bool)
        if not whole or not lowest <= self.value <= highest:
            span = "" if lowest == -_LARGEST else f" of {lowest} or more"
            span += "" if highest == _LARGEST else f", up to {highest}"
            raise self.error(f"a whole number{span}")
        return int(self.value)

    def number(self) -> float:
        """The value, which must be a finite number."""
        is_number = isinstance(self.value, (int, float)) and not isinstance(self.value, bool)
        if not is_number or abs(self.value) > 1e308 or not math.isfinite(self.value):
            raise self.error("a finite number")
        return float(self.value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one mapping")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text} is not finite")
    return value


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(child, left - 1)
