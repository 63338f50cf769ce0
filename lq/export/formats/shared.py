"""What several exporters make of one model, made once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

_Made = TypeVar("_Made")
_MADE: ContextVar[dict[Hashable, Any] | None] = ContextVar("made", default=None)


@contextmanager
def sharing(several: bool = True) -> Iterator[None]:
    """Within the block models stay as they are, so that what one exporter has made of one serves the others.

    Args:
        several: whether there are others; for one alone nothing is kept.

    Example:
        >>> with sharing():
        ...     first, second = made_once("key", object), made_once("key", object)
        >>> first is second, made_once("key", object) is first
        (True, False)
    """
    token = _MADE.set({} if several else None)
    try:
        yield
    finally:
        _MADE.reset(token)


def is_shared() -> bool:
    """Whether what :func:`made_once` returns is kept, so that it must not be changed.

    Example:
        >>> is_shared()
        False
    """
    return _MADE.get() is not None


def made_once(key: Hashable, make: Callable[[], _Made]) -> _Made:
    """What was made under this key within the block of :func:`sharing`; outside of one it is made every time.

    Example:
        >>> made_once("key", list)
        []
    """
    made = _MADE.get()
    if made is None:
        return make()
    if key not in made:
        made[key] = make()
    found: _Made = made[key]
    return found
