"""The benchmark of weights that oscillate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmarks import oscillation
from lq.config.specs import WeightSpec
from lq.core.weight_quantizer import WeightQuantizer

pytest.importorskip("torchvision")


def weight(values: list[float]) -> oscillation._Weight:
    return oscillation._Weight(nn.Parameter(torch.tensor([values])), WeightQuantizer(WeightSpec(-7, 7)))


def test_what_comes_back_oscillates_and_what_goes_on_does_not() -> None:
    watched = weight([7.0, 1.4, 1.4, 3.0])  # the step is 1
    with torch.no_grad():
        for step in range(4):
            watched.parameter[0, 1] = 1.6 if step % 2 == 0 else 1.4  # 2, 1, 2, 1: three times back
            watched.parameter[0, 2] += 1.0  # 2, 3, 4, 5
            watched.note()
    assert watched.frequency[0].tolist() == pytest.approx([0, 1 - (1 - oscillation.MOMENTUM) ** 3, 0, 0])
    with torch.no_grad():
        watched.freeze(0.01)
        watched.parameter[0, 1] = 6.0
        watched.freeze(math.inf)
    assert watched.parameter[0].tolist() == pytest.approx([7.0, 1.0, 5.4, 3.0])


def test_weights_are_drawn_to_the_middle_of_their_bins() -> None:
    watched = weight([7.0, 1.4, -2.2])
    assert watched.to_the_middle()[0].tolist() == pytest.approx([0.0, 0.4, -0.2])


def test_the_table(small_network: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--grids", "W3A3", "--steps", "2", "--methods", "QAT", "dampened, 3", "frozen"]
    rows = oscillation.main([*small_network, *options])
    assert [row["method"] for row in rows] == ["QAT", "dampened, 3", "frozen"]
    assert all(0 <= row["mean"] <= 100 and row["oscillating"] == 0 for row in rows)
    assert "weights that oscillate" in capsys.readouterr().out
