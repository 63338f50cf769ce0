"""When two outputs count as the same."""

from __future__ import annotations

import pytest
import torch

from lq.tracing.closeness import difference

X = torch.tensor([1.0, -200.0, torch.inf, -torch.inf, torch.nan])


def changed(place: int, value: float) -> torch.Tensor:
    y = X.clone()
    y[place] = value
    return y


def test_infinities_and_nan_equal_themselves() -> None:
    assert difference(X, X.clone()) is None
    assert difference(X[2:], X[2:].clone()) is None


@pytest.mark.parametrize(("place", "value"), [(2, 0.0), (2, -torch.inf), (3, torch.nan), (4, 0.0), (0, torch.nan)])
def test_their_places_count(place: int, value: float) -> None:
    assert difference(X, changed(place, value)) == "in where they are infinite or NaN"


@pytest.mark.parametrize(("off", "same"), [(0.0015, True), (0.0025, False)])
def test_the_largest_finite_value_sets_the_tolerance(off: float, same: bool) -> None:
    assert (difference(X, changed(0, 1 + off)) is None) is same


def test_integers_and_flags_are_equal_or_not() -> None:
    large = torch.tensor([2**40])
    assert difference(large, large.clone()) is None
    assert difference(large, large + 1) == "in values that are no floating-point numbers"
    assert difference(torch.tensor([True]), torch.tensor([False])) == "in values that are no floating-point numbers"
