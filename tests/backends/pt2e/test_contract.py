"""The contract of every architecture (see tests/backends/zoo.py) where a vendor's quantizer decides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lq.backends.prepare import plan_of, prepare
from lq.config.qconfig import QConfig
from tests.backends.zoo import ZOO, keep_contract

pytest.importorskip("torchao")

X86, XNNPACK = (QConfig(backend="pt2e", quantizer=name) for name in ("x86_inductor", "xnnpack"))


# Share of the layers that have an int8 kernel of torch's own: x86_inductor leaves outputs in float where it can fuse.
@pytest.mark.parametrize(
    ("name", "qconfig", "kernels"),
    [
        ("torchvision resnet18", X86, 0.5),
        ("several inputs, by keyword", XNNPACK, 0.9),
    ],
)
def test_the_contract(name, qconfig, kernels):
    if not ZOO[name].is_installed:
        pytest.skip(f"{ZOO[name].needs} is not installed")
    kept = keep_contract(ZOO[name], qconfig, kernels)
    assert kept.quantized == kept.layers
    assert kept.float_parts == ()


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.bright, self.dark = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.bright(x) if bool(x.mean() > 0.5) else self.dark(x)


class Gated(nn.Module):
    """Its middle chooses a layer by the values that it gets, which no graph can say."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(3, 16, 3), Gate(), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.gate(torch.relu(self.conv(x)).mean((2, 3))))


def test_of_a_branch_on_values_the_quantizer_sees_what_the_example_took():
    net = Gated()
    prepared = prepare(net, X86, (torch.rand(2, 3, 8, 8),))
    rows = {row.name: row for row in plan_of(prepared).layers}
    assert prepared is net
    assert {name for name, row in rows.items() if row.weight} == {"conv", "gate.dark", "head"}
    assert rows["gate.bright"].reason.startswith("it is not called")
