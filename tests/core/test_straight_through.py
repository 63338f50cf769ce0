from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lq.core.saving import Saving, current
from lq.core.straight_through import in_any_dtype, in_float32
from tests.core.second_derivatives import assert_same_second_derivatives, straight_through_round

SCALE, LOW, HIGH = 0.1, -4.0, 7.0


def twin(x: Tensor) -> Tensor:
    inside = ((x / SCALE).round() >= LOW) & ((x / SCALE).round() <= HIGH)
    return torch.where(inside, straight_through_round(x / SCALE), (x / SCALE).round().clamp(LOW, HIGH)) * SCALE


@pytest.mark.parametrize("function", [in_float32, in_any_dtype])
@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("number", [float, torch.tensor], ids=["numbers", "tensors"])
def test_gradients_have_gradients(function: object, packs: bool, number: object) -> None:
    def rounded(x: Tensor) -> Tensor:
        numbers = [number(value) for value in (SCALE, LOW, HIGH)]  # type: ignore[operator]
        return function(x, *numbers, saving=current() if packs else None)  # type: ignore[operator, no-any-return]

    x = torch.linspace(-1, 1, 41) + 0.013  # no ties, and none at the ends
    with Saving():
        assert_same_second_derivatives(rounded, twin, x)
