"""Dataclasses out of the mappings that YAML gives, and settings of the right type."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")

_LONGEST = 80  # characters of a value in a message


def as_dataclass(kind: type[T], value: Any, name: str) -> T:
    """A dataclass, from itself or from a mapping of its fields.

    Args:
        kind: the dataclass.
        value: one of them, a mapping, or ``None`` for its defaults.
        name: of the setting, for messages.

    Raises:
        TypeError: if it is something else.
        ValueError: if a field does not exist, or its value is out of range.

    Example:
        >>> from lq.config.specs import WeightSpec
        >>> as_dataclass(WeightSpec, {"quant_min": -7, "quant_max": 7}, "weight").bits
        4
        >>> as_dataclass(WeightSpec, {"bits": 4}, "weight")
        Traceback (most recent call last):
        ...
        ValueError: weight has no setting 'bits'; it has quant_min, quant_max, per_channel, learned_scale, observer.
    """
    if value is None:
        return kind()
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise TypeError(
            f"{name}={shown(value)} ({type(value).__name__}) must be "
            f"{article} {kind.__name__}, or a mapping of its settings."
        )
    fields: Any = kind
    known = [field.name for field in dataclasses.fields(fields)]
    unknown = [repr(key) for key in value if key not in known]
    if unknown:
        raise ValueError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(known)}.")
    return kind(**value)


def shown(value: Any) -> str:
    """A value in a message: its ``repr``, but short; tensors and modules by what they are.

    Example:
        >>> import torch
        >>> shown("fbgemm"), shown(torch.zeros(2, 3)), shown(nn.ReLU())
        ("'fbgemm'", '<tensor of shape (2, 3)>', '<ReLU>')
        >>> shown(list(range(1000)))
        '[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19...'
    """
    if isinstance(value, Tensor):
        return f"<tensor of shape {tuple(value.shape)}>"
    if isinstance(value, nn.Module):
        return f"<{type(value).__name__}>"
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 10]}..."


def check_number(name: str, value: Any, example: object) -> None:
    """Refuse text, booleans and NaN where a number is wanted.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is NaN.

    Example:
        >>> check_number("min_sqnr_db", "30", 30)
        Traceback (most recent call last):
        ...
        TypeError: min_sqnr_db='30' (str) is not a number; write e.g. min_sqnr_db=30.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={shown(value)} ({type(value).__name__}) is not a number; {_instead(name, example)}")
    if math.isnan(value):
        raise ValueError(f"{name}={value!r} is not a number; {_instead(name, example)}")


def check_integer(name: str, value: Any, example: int, least: int | None = None) -> None:
    """Refuse all but whole numbers, and those below a limit.

    Args:
        name: of the setting; "room: name" says where it belongs.
        value: that was given.
        example: a usual value.
        least: the smallest that is allowed.

    Raises:
        TypeError: if it is none.
        ValueError: if it is less.

    Example:
        >>> check_integer("batches", 2.5, 10)
        Traceback (most recent call last):
        ...
        TypeError: batches=2.5 (float) is not a whole number; write e.g. batches=10.
        >>> check_integer("auto_bits: batches", 0, 10, least=1)
        Traceback (most recent call last):
        ...
        ValueError: auto_bits: batches=0 must be at least 1; write e.g. batches=10.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name}={shown(value)} ({type(value).__name__}) is not a whole number; {_instead(name, example)}"
        )
    if least is not None and value < least:
        raise ValueError(f"{name}={value} must be at least {least}; {_instead(name, example)}")


def check_flag(name: str, value: Any) -> None:
    """Refuse all but booleans.

    Raises:
        TypeError: if it is none.

    Example:
        >>> check_flag("symmetric", "yes")
        Traceback (most recent call last):
        ...
        TypeError: symmetric='yes' (str) is neither True nor False.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name}={shown(value)} ({type(value).__name__}) is neither True nor False.")


def check_module(name: str, value: Any) -> None:
    """Refuse all but modules.

    Raises:
        TypeError: if it is none.

    Example:
        >>> check_module("model", nn.Linear)
        Traceback (most recent call last):
        ...
        TypeError: model=<class 'torch.nn.modules.linear.Linear'> is a class; give an instance, model=Linear(...).
    """
    if isinstance(value, nn.Module):
        return
    if isinstance(value, type):
        raise TypeError(f"{name}={value!r} is a class; give an instance, {name}={value.__name__}(...).")
    hint = " Load it into a module: module.load_state_dict(...)." if isinstance(value, Mapping) else ""
    raise TypeError(f"{name} must be a torch.nn.Module, but is {_article(value)}.{hint}")


def check_path(name: str, value: Any, example: str) -> None:
    """Refuse all but paths and URLs.

    Raises:
        TypeError: if it is none.

    Example:
        >>> check_path("directory", None, "runs/int8")
        Traceback (most recent call last):
        ...
        TypeError: directory=None (NoneType) must be a path or a URL, e.g. 'runs/int8'.
    """
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        given = "" if isinstance(value, nn.Module) else f"={shown(value)}"
        raise TypeError(f"{name}{given} ({type(value).__name__}) must be a path or a URL, e.g. {example!r}.")


def _instead(name: str, example: object) -> str:
    return f"write e.g. {name.rpartition(': ')[2]}={example!r}."


def _article(value: Any) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeio' else 'a'} {kind}"
