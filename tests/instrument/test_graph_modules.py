"""Graphs of torch.fx in a network are quantized like other modules, and so are copies of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from lq.backends.prepare import plan_of, prepare, set_phase
from lq.conversion.convert import convert, in_float
from lq.metrics import sqnr

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.0)  # which the graphs of a feature extractor for training and evaluation differ in

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(x) + x
        third: Tensor = self.drop(self.third(x))
        return third


class Detector(nn.Module):
    """A head on a body that is a graph."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Any = self.body(x)
        scores: Tensor = self.head(found["fine"] if isinstance(found, dict) else found)
        return scores


def extractor() -> nn.Module:
    """A graph that is another one in training than in evaluation."""
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    made: nn.Module = extraction.create_feature_extractor(Residual(), {"drop": "fine"})
    return made


NETS = {
    "extractor": lambda: Detector(extractor()),
    "graph in a network": lambda: Detector(fx.symbolic_trace(Residual())),
    "all of it": lambda: fx.symbolic_trace(Detector(Residual())),
}


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_a_graph_is_quantized_in_every_mode_and_in_copies(make: Any) -> None:
    torch.manual_seed(0)
    net = make().eval()
    floating = net(X)
    prepared = prepare(net, "portable", (X,))
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    for _ in range(2):
        prepared.train()(X).sum().backward()
    fake = prepared.eval()(X)
    assert not torch.allclose(fake, floating)
    twin = copy.deepcopy(prepared)
    assert plan_of(twin) == plan_of(prepared)
    assert twin.state_dict().keys() == prepared.state_dict().keys()
    for one in (prepared, twin, copy.deepcopy(twin)):
        assert torch.equal(one.train().eval()(X), fake)
        int8 = convert(one)
        assert in_float(int8) == {}, "the addition is quantized"
        assert sqnr(fake, int8(X)) >= 30, "but for ties"
