"""The exact choice against brute force."""

from __future__ import annotations

import itertools
import random

import pytest

from lq.analysis.bits.knapsack import Options, Point, frontier, solve


def every_choice(items: list[Options]) -> list[Point]:
    found = []
    for picks in itertools.product(*(range(len(options)) for options in items)):
        taken = [options[pick] for options, pick in zip(items, picks, strict=True)]
        found.append(Point(sum(cost for cost, _ in taken), sum(loss for _, loss in taken), picks))
    return found


def some_items(seed: int) -> list[Options]:
    """Losses that mostly fall with the cost, some that do not, equal costs, single options."""
    draw = random.Random(seed)
    items: list[Options] = []
    for _ in range(draw.randint(1, 6)):
        size = draw.choice([1, 7, 48, 1000])
        bits = draw.sample([2, 3, 4, 8, 32], draw.randint(1, 4))
        items.append([(size * b, draw.random() * 4.0**-b * draw.choice([1, 100])) for b in bits])
    return items


@pytest.mark.parametrize("seed", range(60))
def test_no_choice_that_fits_is_better(seed: int) -> None:
    items = some_items(seed)
    choices = every_choice(items)
    costs = sorted({choice.cost for choice in choices})
    for capacity in random.Random(seed).sample(costs, min(8, len(costs))):
        best = min(choice.loss for choice in choices if choice.cost <= capacity)
        found = solve(items, capacity)
        assert found.cost <= capacity
        assert found.loss == pytest.approx(best, rel=1e-9)  # sums in another order
        taken = [options[pick] for options, pick in zip(items, found.picks, strict=True)]
        assert (sum(c for c, _ in taken), sum(loss for _, loss in taken)) == (found.cost, pytest.approx(found.loss))


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_is_better_than_the_frontier_at_its_cost(seed: int) -> None:
    items = some_items(seed)
    choices, points = every_choice(items), frontier(items)
    assert points[0].cost == min(choice.cost for choice in choices)
    assert points[-1].loss == pytest.approx(min(choice.loss for choice in choices))
    for point in points:
        best = min(choice.loss for choice in choices if choice.cost <= point.cost)
        assert point.loss == pytest.approx(best, rel=1e-9)
    losses = [point.loss for point in points]
    assert losses == sorted(losses, reverse=True)


def test_a_network_of_a_hundred_layers_is_solved_within_its_bound() -> None:
    """Too many choices to try; the optimum lies between the loss of the hull at the capacity and the hull's corner."""
    draw = random.Random(0)
    items = []
    for _ in range(100):
        size, scale = draw.randint(100, 10**6), draw.random()
        items.append([(size * bits, scale * 4.0**-bits * size**0.5) for bits in (2, 3, 4, 5, 6, 8)])
    corners = frontier(items)
    for low, high in list(itertools.pairwise(corners))[50::100]:
        capacity = (low.cost + high.cost) // 2
        part = (capacity - low.cost) / (high.cost - low.cost)
        found = solve(items, capacity)
        assert found.cost <= capacity
        assert low.loss + part * (high.loss - low.loss) <= found.loss * (1 + 1e-9) <= low.loss * (1 + 2e-9)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="the cheapest options cost 12 together, which is more than 11"):
        solve([[(4, 1.0), (8, 0.0)], [(8, 1.0)]], 11)
    assert solve([[(4, 1.0), (8, 0.0)], [(8, 1.0)]], 12).picks == (0, 0)


def test_an_option_that_costs_more_and_loses_more_is_never_taken() -> None:
    assert solve([[(4, 1.0), (8, 2.0)]], 100).picks == (0,)
    assert solve([], 0) == Point(0, 0.0, ())
