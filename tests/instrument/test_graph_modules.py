from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lq.backends.prepare import plan_of, prepare, set_phase
from lq.conversion.convert import convert

feature_extraction = pytest.importorskip("torchvision.models.feature_extraction")

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Detector(nn.Module):
    """A body of torchvision's feature extractor, whose graph is another one in training than in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.0))
        self.body = feature_extraction.create_feature_extractor(layers, {"3": "fine"})
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x)["fine"])
        return scores


def test_a_graph_that_recompiles_itself_is_quantized_in_training_and_in_evaluation() -> None:
    torch.manual_seed(0)
    net = Detector().eval()
    floating = net(X)
    prepared = prepare(net, "portable", (X,))
    assert [layer.name for layer in plan_of(prepared).quantized] == ["body.0", "head"]
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    for _ in range(2):
        prepared.train()(X).sum().backward()
    fake = prepared.eval()(X)
    assert not torch.allclose(fake, floating)
    twin = copy.deepcopy(prepared)
    assert torch.equal(prepared.train().eval()(X), fake)
    assert torch.equal(twin.train().eval()(X), fake)
    assert torch.allclose(convert(prepared)(X), fake, atol=1e-5)
