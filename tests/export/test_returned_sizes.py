"""A number among the outputs that depends on the batch is right for any batch, in every file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lq
from lq.backends.self_check import self_check
from lq.conversion.graph import as_graph
from tests.tiny import quicken_deployment


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"scores": self.net(x), "count": x.shape[0], "next": x.size(0) + 1, "classes": 3}


def test_sizes_among_the_outputs_are_those_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)
    torch.manual_seed(0)
    net, x = Counting(), torch.randn(8, 4)
    float_net = Counting()
    float_net.load_state_dict(net.state_dict())
    prepared = lq.prepare(net, example_args=(x,))
    lq.calibrate(prepared, [x])
    self_check(float_net, as_graph(prepared, ((x,), {})), (x,))
    done = lq.export_artifact(prepared, [x], tmp_path / "int8", ["torch", "onnx", "pt2"])
    for kind in ("torch", "onnx", "pt2"):
        for size in (8, 3):
            output = done.models[kind](x[:size])
            assert [int(output[name]) for name in ("count", "next")] == [size, size + 1], kind
            assert output["classes"] == 3
            assert output["scores"].shape == (size, 3)
