"""Models that are one layer, which has no name in them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lq.backends.prepare import prepare
from lq.conversion.convert import convert
from lq.ptq.calibrate import calibrate


@pytest.mark.parametrize(
    ("layer", "x"), [(nn.Linear(3, 2), torch.ones(4, 3)), (nn.Conv2d(3, 2, 1), torch.ones(4, 3, 5, 5))]
)
def test_a_model_that_is_a_single_layer_is_converted(layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = layer(x)
    prepared = prepare(layer, "portable", (x,))
    calibrate(prepared, [x], show_progress=False)
    # A weight of 7 bits is half a step of 1/126 of its largest value off, three of which add up.
    assert (convert(prepared)(x) - expected).abs().max() < 0.05
