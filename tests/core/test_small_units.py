"""Values in small units: scales have no absolute floor that rounds them to zero."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import lq


@pytest.mark.parametrize("unit", [1.0, 1e-4, 1e-7, 1e-8, 1e-10])
def test_a_network_in_any_unit_keeps_its_accuracy(unit: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        net[0].weight.div_(unit)
    x = torch.randn(256, 16) * unit
    prepared = lq.prepare(copy.deepcopy(net), example_args=(x,))
    lq.calibrate(prepared, [x], show_progress=False)
    with torch.no_grad():
        exact = net(x)
        for model in (prepared, lq.convert(prepared)):
            noise = (exact - model(x)).square().sum() / exact.square().sum()
            assert noise < 1e-3, "less than 30 dB"


def test_weights_in_small_units_too() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(16, 8, bias=False)), torch.randn(64, 16)
    with torch.no_grad():
        net[0].weight.mul_(1e-8)
    prepared = lq.prepare(copy.deepcopy(net), example_args=(x,))
    lq.calibrate(prepared, [x], show_progress=False)
    with torch.no_grad():
        exact = net(x)
        assert (exact - prepared(x)).square().sum() < 1e-3 * exact.square().sum()
