"""Files in the making as text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lq.export.formats.litert.file import File, FileTensor, LiteRTGrid, Size
from lq.export.formats.litert.listing import listing, listing_of

pytest.importorskip("ai_edge_litert")


def test_constants_are_shown_as_the_real_values_that_they_stand_for() -> None:
    file = File()
    x, y = (file.tensor(FileTensor(name, (Size(2, changes=True), Size(2)))) for name in "xy")
    rows = file.constant("rows", np.int8([[1, -2], [4, 127]]), LiteRTGrid((0.5, 0.01), 0, 0))
    many = file.constant("many", np.zeros((3, 3), np.int8), LiteRTGrid.of(0.5, 3))
    file.operator("ADD", [x, rows], [y])
    file.operator("SELECT_V2", [file.constant("mask", np.array([True, False])), many, -1], [y])
    assert listing(file).splitlines() == [
        "y: float32 [2 * batch, 2] = ADD(x, [[0.5, -1], [0.04, 1.27]])",
        "y: float32 [2 * batch, 2] = SELECT_V2([1, 0], many: 0.5 * (int8 - 3) [3, 3])",
    ]


def test_options_are_shown_by_name_unless_they_are_the_usual_ones() -> None:
    line = listing_of(lambda image: F.relu(F.max_pool2d(image, 2)), image=torch.zeros(1, 1, 4, 4)).splitlines()[0]
    assert "padding=VALID, strideH=2" in line
    assert "RELU" not in line, "it is an operator of its own"
    assert "RELU)" in listing_of(nn.Sequential(nn.Linear(2, 1), nn.ReLU()), x=torch.zeros(1, 2))


def test_inputs_that_are_one_tensor_stay_apart() -> None:
    x = torch.zeros(2, 3)
    assert listing_of(torch.sub, x=x, y=x) == "sub: float32 [2, 3] = SUB(x, y)"


def test_what_waits_for_a_reader_is_written() -> None:
    assert "TRANSPOSE(x, [0, 2, 1])" in listing_of(lambda x: x.transpose(1, 2), x=torch.zeros(2, 3, 4))


def test_only_numbers_with_a_fraction_are_rounded_to_the_step() -> None:
    ids, x = torch.arange(3), torch.zeros(3)
    assert listing_of(lambda ids, x: (ids > 1, x), step=0.5, ids=ids, x=x) == (
        "ids/cast: float32 [3] = CAST(ids)\ngt: bool [3] = GREATER(ids/cast, 1)"
    )
