"""Names that nothing else has."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, count


def free_name(wanted: str, is_taken: Callable[[str], bool]) -> str:
    """A name, with the first number behind it that makes it free.

    Args:
        wanted: the name.
        is_taken: whether something else has a name.

    Example:
        >>> free_name("x", ["y"].__contains__), free_name("y", ["y", "y_1"].__contains__)
        ('x', 'y_2')
    """
    names = chain([wanted], (f"{wanted}_{number}" for number in count(1)))
    return next(name for name in names if not is_taken(name))
