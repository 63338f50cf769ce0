"""In which order the dimensions of a tensor lie, and what reshaping makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeAlias

from lq.export.formats.litert.file import Shape, Size

Order: TypeAlias = tuple[int, ...]
Groups: TypeAlias = list[tuple[list[int], list[int]]]

CHANNELS_LAST: dict[int, Order] = {3: (0, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}


def in_place(shape: Shape, order: Order) -> Shape:
    """The sizes by dimension of what lies in an order.

    Example:
        >>> in_place((Size(4), Size(5), Size(3)), CHANNELS_LAST[3])
        (Size(length=4, changes=False), Size(length=3, changes=False), Size(length=5, changes=False))
    """
    sizes = dict(zip(order, shape, strict=True))
    return tuple(sizes[dimension] for dimension in range(len(order)))


def order_through(lying: Shape, order: Order, shape: Shape) -> Order | None:
    """In which order the dimensions of a reshaped tensor can lie without moving an element; ``None`` if in none.

    A dimension may be split into several and several be joined, wherever those lie side by side.

    Example:
        >>> image = (Size(1, changes=True), Size(4), Size(5), Size(6))  # batch, height, width, channels, as they lie
        >>> order_through(image, CHANNELS_LAST[4], (Size(1, changes=True), Size(6), Size(20)))  # tokens
        (0, 2, 1)
        >>> order_through(image, CHANNELS_LAST[4], (Size(1, changes=True), Size(120))) is None  # flattened
        True
    """
    old = in_place(lying, order)
    groups = matching_groups(old, shape)
    if groups is None:
        return None
    moved: list[int] = []
    rest = [dimension for dimension in order if old[dimension] != Size(1)]
    while rest:
        before, after = next(group for group in groups if rest[0] in group[0])
        filled = [dimension for dimension in before if old[dimension] != Size(1)]
        if rest[: len(filled)] != filled:
            return None
        moved += [dimension for dimension in after if shape[dimension] != Size(1)]
        rest = rest[len(filled) :]
    single = [dimension for dimension in range(len(shape)) if dimension not in moved]
    usual = (tuple(range(len(shape))), CHANNELS_LAST.get(len(shape), ()))
    matching = (known for known in usual if [d for d in known if d in moved] == moved and len(known) == len(shape))
    return next(matching, (*moved[:1], *single, *moved[1:]))


def matching_groups(old: Shape, new: Shape) -> Groups | None:
    """Which dimensions, joined, become which others: ``[([0], [0]), ([1, 2], [1])]``.

    Example:
        >>> matching_groups((Size(2), Size(3), Size(4)), (Size(2), Size(12)))
        [([0], [0]), ([1, 2], [1])]
        >>> matching_groups((Size(2), Size(3)), (Size(3), Size(2)))
        [([0, 1], [0, 1])]
        >>> matching_groups((Size(4), Size(3)), (Size(3), Size(5))) is None
        True
    """
    groups: Groups = []
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = list(range(i, min(i + 1, len(old)))), list(range(j, min(j + 1, len(new))))
        if before and old[i] == Size(1) and (not after or new[j] != Size(1)):
            after = []
        elif after and new[j] == Size(1) and (not before or old[i] != Size(1)):
            before = []
        while before and after and _extent(old, before) != _extent(new, after):
            grown, sizes = (before, old) if _extent(old, before) < _extent(new, after) else (after, new)
            if grown[-1] + 1 == len(sizes):
                return None
            grown.append(grown[-1] + 1)
        groups.append((before, after))
        i, j = i + len(before), j + len(after)
    return groups


def order_before(groups: Groups, order: Order, shape: Shape) -> Order | None:
    """How dimensions have to lie so that those that they become lie in an order; ``None`` if nothing makes them.

    Example:
        >>> groups = [([0], [0]), ([1], [1]), ([2, 3], [2])]  # (batch, 6, 4, 5) becomes (batch, 6, 20)
        >>> order_before(groups, (0, 2, 1), (Size(1, changes=True), Size(6), Size(20)))
        (0, 2, 3, 1)
    """
    before: list[int] = []
    rest = [dimension for dimension in order if shape[dimension] != Size(1)]
    while rest:
        old, new = next(group for group in groups if rest[0] in group[1])
        filled = [dimension for dimension in new if shape[dimension] != Size(1)]
        if rest[: len(filled)] != filled:
            return None
        before += old
        rest = rest[len(filled) :]
    return (*(dimension for old, _ in groups for dimension in old if dimension not in before), *before)


_ANY_BATCH = 2**61 - 1  # a prime that no size has as a factor


def _extent(sizes: Shape, dimensions: Sequence[int]) -> int:
    return prod(sizes[d].length * (_ANY_BATCH if sizes[d].changes else 1) for d in dimensions)


def nearest_order(groups: Groups, order: Order) -> Order:
    """How dimensions lie if those that they come from are moved as little as can be.

    Example:
        >>> groups = [([0], [0]), ([1], [1]), ([2, 3], [2])]  # (batch, 6, 4, 5) becomes (batch, 6, 20)
        >>> nearest_order(groups, CHANNELS_LAST[4])
        (0, 2, 1)
    """
    last = {tuple(new): max(map(order.index, old), default=0) for old, new in groups if new}
    return tuple(dimension for new in sorted(last, key=last.__getitem__) for dimension in new)
