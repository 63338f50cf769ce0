"""Calls that torch.jit.trace would take with the sizes of the example."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq
from lq.metrics import sqnr
from tests.tiny import quicken_deployment


class WithEmpty(nn.Module):
    """Joins a part without channels, as encoders do that skip a level."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        nothing = torch.empty((x.shape[0], 0, *x.shape[2:]), dtype=x.dtype, device=x.device)
        y: Tensor = self.conv(torch.cat([x, nothing], 1))
        return y.flatten(1).topk(5).values


class Bag(nn.Module):
    """Asks how many numbers its input has."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.fc = nn.EmbeddingBag(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.bag(x.abs().mul(3).long().clamp(max=7).flatten(1)))
        return y


class Codes(nn.Module):
    """The nearest of a few, or many, codes, as in a VQ-VAE; with two sums of its own around them."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.register_buffer("codes", torch.randn(count, 4))

    def forward(self, x: Tensor) -> Tensor:
        z = (self.conv(x) + self.conv(x.flip(-1))).permute(0, 2, 3, 1)
        nearest = torch.cdist(z.reshape(-1, 4), self.codes).argmin(1)
        q = z + (self.codes[nearest].view(z.shape) - z).detach()
        y: Tensor = self.out(q.permute(0, 3, 1, 2))
        return y


class Filters(nn.Module):
    """A filter for each sample, made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.route, self.filters = nn.Conv2d(3, 4, 1), nn.Linear(4, 2), nn.Parameter(torch.randn(2, 4 * 36))
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        count, channels = x.shape[:2]
        filters = (self.route(x.mean((2, 3))).softmax(1) @ self.filters).view(count * 4, channels, 3, 3)
        x = nn.functional.conv2d(x.reshape(1, -1, *x.shape[2:]), filters, stride=2, padding=1, groups=count)
        y: Tensor = self.out(torch.relu(x.view(count, 4, *x.shape[2:])))
        return y


@pytest.mark.parametrize("exporter", ["torch", "onnx"])
@pytest.mark.parametrize("build", [WithEmpty, Bag, lambda: Codes(5), lambda: Codes(40), Filters])
def test_the_batch_stays_dynamic(build: Any, exporter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6)
    prepared = lq.prepare(build().eval(), example_args=(x,))
    lq.calibrate(prepared, [x])
    lq.export_artifact(prepared, [x], tmp_path / "int8", [exporter])
    more = torch.cat([x, x.flip(0), x[:1]])
    with torch.no_grad():
        assert sqnr(prepared(more), lq.load(tmp_path / "int8")(more)) > 30


class KeepsDimensions(nn.Module):
    """The mean of all values, with as many dimensions as its input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.fc(x).mean(dim=None, keepdim=True)
        return mean


def test_a_mean_of_all_dimensions_keeps_them() -> None:
    x = torch.randn(3, 4)
    prepared = lq.prepare(KeepsDimensions().eval(), example_args=(x,))
    lq.calibrate(prepared, [x])
    assert lq.convert(prepared)(x).shape == prepared.eval()(x).shape == (1, 1)
