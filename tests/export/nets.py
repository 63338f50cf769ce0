"""Calibrated nets, and the way to the disk and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lq.backends.prepare import prepare, set_phase
from lq.config.qconfig import QConfig
from lq.conversion.bias import round_biases
from lq.conversion.graph import as_graph
from lq.export.artifact.signature import Signature
from lq.export.exporters import chosen
from lq.tracing.structure import Inputs

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def images(count: int, seed: int = 2) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    """Seven layers: a depthwise one, an addition, max pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.hidden, self.head = nn.Linear(128, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = x + self.point(F.relu6(self.depthwise(x)))
        x = F.max_pool2d(F.relu(self.second(x)), 2)
        x = F.relu(self.third(x)).flatten(1)
        logits: Tensor = self.head(F.relu(self.hidden(x)))
        return logits


class TwoInputs(nn.Module):
    """Two images, one by keyword only; a scale that is no tensor; a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, image: Tensor, *, other: Tensor, scale: float = 1.0) -> dict[str, Any]:
        x = F.relu(self.left(image)) + F.relu(self.right(other))
        features = x.mean((2, 3))
        return {"logits": self.head(features) * scale, "features": (features, x), "loss": None}


def example_of(*args: Any, **kwargs: Any) -> Inputs:
    return args, kwargs


def calibrated(net: nn.Module, example: Inputs, qconfig: QConfig | str = "portable") -> fx.GraphModule:
    """A prepared net with ranges, in evaluation mode, its biases rounded."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        net.train()(*example[0], **example[1])
        prepared = prepare(net.eval(), qconfig, example[0], example[1])
        set_phase(prepared, fake_quant=True, observer=True, freeze_bn=True)
        prepared.train()(*example[0], **example[1])
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    graph = as_graph(prepared, example).eval()
    round_biases(graph)
    return graph


def residual(qconfig: QConfig | str = "portable") -> fx.GraphModule:
    torch.manual_seed(0)
    return calibrated(Residual(), example_of(IMAGES), qconfig)


def round_trip(
    kind: str, prepared: fx.GraphModule, example: Inputs, directory: Path, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """The exported model, loaded again, and what the exporter says of it."""
    choice = chosen([{kind: options}])[0]
    with torch.no_grad():
        output = prepared(*example[0], **example[1])
    info = choice.export(prepared, example, directory)
    return choice.exporter.load(directory, Signature.of(prepared, example, output), info, 1), info
