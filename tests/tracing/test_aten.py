"""Calls that torch.jit.trace would take with the sizes of the example."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lq
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


def test_the_batch_stays_dynamic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)
    x = torch.randn(4, 3, 6, 6)
    prepared = lq.prepare(WithEmpty().eval(), example_args=(x,))
    lq.calibrate(prepared, [x])
    lq.export_artifact(prepared, [x], tmp_path / "int8", ["torch"])
    assert lq.load(tmp_path / "int8")(torch.randn(9, 3, 6, 6)).shape == (9, 5)
