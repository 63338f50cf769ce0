from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq
from lq.backends.prepare import prepare
from lq.conversion.convert import convert
from lq.metrics import sqnr
from lq.ptq import calibrate


def test_conversions_leave_nothing_behind() -> None:
    def known() -> Counter[str]:
        gc.collect()
        names = ("ShapeEnv", "FakeTensorMode", "FakeTensor", "ExportedProgram")
        return Counter(kind for thing in gc.get_objects() if (kind := type(thing).__name__) in names)

    x = torch.randn(4, 3)
    prepared = lq.prepare(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), example_args=(x,))
    lq.calibrate(prepared, [x], show_progress=False)
    lq.convert(prepared)
    before = known()
    for _ in range(3):
        lq.convert(prepared)
    assert known() == before


class Counts(nn.Module):
    """Returns numbers that it computes of sizes, beside a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        count, height = x.shape[0], x.shape[2]
        return {"count": count, "half": height / 2, "is high": height > 8, "classes": 4, "y": self.conv(x)}


@pytest.mark.parametrize("axes", [None, {"x": [2]}])
def test_numbers_that_depend_on_dynamic_sizes_are_results(axes: dict[str, list[int]] | None) -> None:
    x, other = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 10 if axes else 8, 8)
    prepared = prepare(Counts(), example_args=(x,))
    calibrate(prepared, [x], show_progress=False)
    int8 = convert(prepared, dynamic_axes=axes)
    for given in (x, other):
        expected, got = prepared.eval()(given), int8(given)
        assert sqnr(expected.pop("y"), got.pop("y")) > 40
        assert {name: float(value) for name, value in got.items()} == expected
