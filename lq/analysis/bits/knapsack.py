"""One option for each item, with the least loss that a capacity allows: the multiple-choice knapsack, solved exactly.

An item's options cost whole numbers. Their lower convex hull gives both a first solution, by taking the steepest steps
first, and a bound from below, by allowing part of a step. States of the dynamic program that cannot be part of a better
solution are dropped, which leaves few of them.

Source:
    Kellerer, Pferschy, Pisinger, "Knapsack Problems", Springer 2004, chapter 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Options = Sequence[tuple[int, float]]
_Costs = npt.NDArray[np.int64]
_Losses = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # a sum in another order is not another solution


class _Step(NamedTuple):
    """From one option of an item to the next one on its hull."""

    item: int
    option: int
    cost: int
    loss: float

    @property
    def slope(self) -> float:
        return self.loss / self.cost


@dataclass(frozen=True)
class Point:
    """A choice, and what it costs.

    Args:
        cost: of all items together.
        loss: of all items together.
        picks: index of the option of each item.

    Example:
        >>> point = solve([[(2, 9.0), (4, 1.0)], [(2, 5.0), (4, 0.5)]], capacity=8)
        >>> point.picks, point.cost, point.loss
        ((1, 1), 8, 1.5)
    """

    cost: int
    loss: float
    picks: tuple[int, ...]


def solve(items: Sequence[Options], capacity: int) -> Point:
    """The choice with the least loss among those that cost no more than a capacity.

    Args:
        items: the options of each, as pairs of cost and loss.
        capacity: of all items together.

    Returns:
        the choice; of those with the same loss one that no cheaper one equals.

    Raises:
        ValueError: if even the cheapest options cost more.

    Example:
        >>> solve([[(2, 9.0), (4, 1.0)], [(2, 5.0), (4, 0.5)]], capacity=6)
        Point(cost=6, loss=6.0, picks=(1, 0))
    """
    least = sum(min(cost for cost, _ in options) for options in items)
    if least > capacity:
        raise ValueError(f"the cheapest options cost {least} together, which is more than {capacity}.")
    bounds = [_Bound(items, first) for first in range(len(items) + 1)]
    best = _greedy(items, capacity).loss
    enough = best + _ROUNDING * abs(best)
    costs, losses = np.zeros(1, np.int64), np.zeros(1)
    decisions: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for options, bound in zip(items, bounds[1:], strict=True):
        costs, losses, parents, picks = _extended(costs, losses, options)
        kept = _worth_keeping(costs, losses, bound, capacity, enough)
        costs, losses = costs[kept], losses[kept]
        decisions.append((parents[kept], picks[kept]))
    state = int(np.argmin(losses))
    found = Point(int(costs[state]), float(losses[state]), ())
    return Point(found.cost, found.loss, _traced(decisions, state))


def frontier(items: Sequence[Options]) -> list[Point]:
    """Choices from the cheapest to the one with the least loss, each optimal for its cost.

    They are the corners of the convex hull of all choices: between two of them :func:`solve` finds more.

    Example:
        >>> [(point.cost, point.loss) for point in frontier([[(2, 9.0), (4, 1.0)], [(2, 5.0), (4, 0.5)]])]
        [(4, 14.0), (6, 6.0), (8, 1.5)]
    """
    hulls = [_hull(options) for options in items]
    picks = [hull[0] for hull in hulls]
    points = [_point(items, picks)]
    for step in _steps(items):
        picks[step.item] = step.option
        points.append(_point(items, picks))
    return points


class _Bound:
    """The least loss of the items from one on, if parts of steps were allowed; exact at the corners of the hull."""

    def __init__(self, items: Sequence[Options], first: int) -> None:
        rest = items[first:]
        start = _point(rest, [_hull(options)[0] for options in rest])
        steps = _steps(rest)
        self.cost: _Costs = np.cumsum([start.cost, *(step.cost for step in steps)])
        self.loss: _Losses = np.cumsum([start.loss, *(step.loss for step in steps)])

    def of(self, room: _Costs) -> _Losses:
        """For what is left of the capacity; infinite where that is too little."""
        return np.where(room < self.cost[0], np.inf, np.interp(room, self.cost, self.loss))


def _extended(
    costs: _Costs, losses: _Losses, options: Options
) -> tuple[_Costs, _Losses, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every state with every option of the next item; where they come from, and the option."""
    own_costs, own_losses = np.array([c for c, _ in options], np.int64), np.array([loss for _, loss in options])
    parents, picks = np.divmod(np.arange(len(costs) * len(options)), len(options))
    return costs[parents] + own_costs[picks], losses[parents] + own_losses[picks], parents, picks


def _worth_keeping(
    costs: _Costs, losses: _Losses, bound: _Bound, capacity: int, enough: float
) -> npt.NDArray[np.int64]:
    """Indices of the states that no other one dominates, and that may become a solution as good as the known one."""
    possible = np.flatnonzero(losses + bound.of(capacity - costs) <= enough + _ROUNDING * abs(enough))
    order = possible[np.lexsort((losses[possible], costs[possible]))]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(losses[order])[:-1]])
    return order[losses[order] < best_before]


def _traced(decisions: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]], state: int) -> tuple[int, ...]:
    picks = []
    for parents, chosen in reversed(decisions):
        picks.append(int(chosen[state]))
        state = int(parents[state])
    return tuple(reversed(picks))


def _greedy(items: Sequence[Options], capacity: int) -> Point:
    """The steepest steps first, as long as they fit; behind one that does not, the item stays where it is."""
    picks, stuck = [_hull(options)[0] for options in items], set()
    cost = _point(items, picks).cost
    for step in _steps(items):
        if step.item not in stuck and cost + step.cost <= capacity:
            picks[step.item] = step.option
            cost += step.cost
        else:
            stuck.add(step.item)
    return _point(items, picks)


def _steps(items: Sequence[Options]) -> list[_Step]:
    """The steps along the hulls of all items, the one that takes away the most loss per cost first."""
    steps = []
    for item, options in enumerate(items):
        hull = _hull(options)
        for before, after in pairwise(hull):
            (cost, loss), (more, less) = options[before], options[after]
            steps.append(_Step(item, after, more - cost, less - loss))
    return sorted(steps, key=lambda step: step.slope)


def _hull(options: Options) -> list[int]:
    """Indices of the options on the lower convex hull, from the cheapest to the one with the least loss."""
    hull: list[int] = []
    for index in sorted(range(len(options)), key=lambda index: options[index]):
        if hull and options[index][1] >= options[hull[-1]][1]:
            continue  # no cheaper and no better
        while len(hull) > 1 and _slope(options, hull[-2], index) <= _slope(options, hull[-2], hull[-1]):
            hull.pop()
        hull.append(index)
    return hull


def _slope(options: Options, before: int, after: int) -> float:
    (cost, loss), (more, less) = options[before], options[after]
    return (less - loss) / (more - cost)


def _point(items: Sequence[Options], picks: Sequence[int]) -> Point:
    taken = [options[pick] for options, pick in zip(items, picks, strict=True)]
    return Point(sum(cost for cost, _ in taken), float(sum(loss for _, loss in taken)), tuple(picks))
