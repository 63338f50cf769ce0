from __future__ import annotations

import pytest
import torch
from torch import nn

from lq.backends.prepare import prepare
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec
from lq.conversion.convert import convert
from lq.conversion.reference import reference
from lq.conversion.tensor_grid import TensorGrid
from lq.metrics import sqnr
from lq.ptq import calibrate


@pytest.mark.parametrize(
    ("grid", "dtype", "ints"),
    [
        (TensorGrid(0.1, 100, 0, 255), torch.uint8, (100, 0, 255)),
        (TensorGrid(0.1, 100, 0, 255), torch.int8, (-28, -128, 127)),
        (TensorGrid(0.1, 0, -127, 127), torch.int8, (0, -127, 127)),
        (TensorGrid(0.1, 0, -127, 127), torch.uint8, (128, 1, 255)),
        (TensorGrid(0.1, 3, 0, 15), torch.int8, (3, 0, 15)),
        (TensorGrid(0.1, 0, -8, 7), torch.uint8, (128, 120, 135)),
        (TensorGrid(0.1, 7, -100, 155), torch.uint8, (107, 0, 255)),
        (TensorGrid(0.1, 7, -100, 155), torch.int8, (-21, -128, 127)),
        (TensorGrid(0.1, -9, -200, 20), torch.int8, (98, -93, 127)),
        (TensorGrid(0.1, 150, -3, 200), torch.uint8, (205, 52, 255)),
    ],
)
def test_shifting_changes_integers_and_no_value(
    grid: TensorGrid, dtype: torch.dtype, ints: tuple[int, int, int]
) -> None:
    shifted = grid.shifted_into(dtype)
    assert (shifted.zero_point, shifted.quant_min, shifted.quant_max) == ints
    assert shifted.ends == grid.ends
    info = torch.iinfo(dtype)
    assert info.min <= shifted.quant_min < shifted.quant_max <= info.max
    assert shifted.fills(dtype) == ((shifted.quant_min, shifted.quant_max) == (info.min, info.max))


@pytest.mark.parametrize("ends", [(-100, 155), (-200, 20), (-3, 200)])
def test_grids_that_no_integer_type_holds_as_they_are_compute_what_was_trained(ends: tuple[int, int]) -> None:
    x = torch.randn(64, 4)
    qconfig = QConfig("portable", activation=ActivationSpec(*ends))
    prepared = prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), qconfig, example_args=(x,))
    calibrate(prepared, [x], show_progress=False)
    expected = prepared.eval()(x)
    for got in (convert(prepared)(x), reference(prepared)(x), reference(prepared, signed=True)(x)):
        assert sqnr(expected, got) > 40  # the other order of additions flips a few roundings
