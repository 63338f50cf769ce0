"""A target that takes a dataclass: exported with its tensors by the names of the fields, and called as before."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq
from lq.conversion.graph import as_graph
from tests.tiny import quicken_deployment


class Stage(Enum):
    TRAIN = "train"


@dataclass
class History:
    past: Tensor
    known: tuple[Tensor, Tensor | None]
    stage: Stage = Stage.TRAIN


class Forecast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.past, self.known = nn.Linear(6, 8), nn.Linear(3, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, history: History) -> Tensor:
        assert isinstance(history, History)
        return self.head(torch.relu(self.past(history.past) + self.known(history.known[0])))


def history(count: int, seed: int = 0) -> History:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda size: torch.randn(count, size, generator=generator)  # noqa: E731
    return History(draw(6), (draw(3), None))


@pytest.fixture
def prepared() -> nn.Module:
    torch.manual_seed(0)
    net = lq.prepare(Forecast(), example_args=(history(4),))
    lq.calibrate(net, [history(32)], call=lambda model, batch: model(batch), show_progress=False)
    return net


def test_its_fields_are_quantized_inputs_and_name_the_placeholders_tensors(prepared: nn.Module) -> None:
    plan = lq.plan_of(prepared)
    assert {row.name for row in plan.quantized} >= {"past", "known", "head"}
    assert {"history_past", "history_known_0"} <= {tensor.after for tensor in plan.tensors}
    graph, given = as_graph(prepared), history(5, 1)
    with torch.no_grad():
        torch.testing.assert_close(graph(given), prepared.eval()(given), atol=0, rtol=0)
        plain: Any = {"past": given.past, "known": given.known}
        torch.testing.assert_close(graph(plain), graph(given), atol=0, rtol=0)


def test_every_artifact_is_called_with_it(prepared: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)
    kinds = ["torch", "onnx", "pt2", "openvino"]
    done = lq.export_artifact(prepared, [(history(8, 2),)], tmp_path / "int8", kinds)
    assert all(parity.passed for parity in done.parity.values())
    given = history(3, 3)
    with torch.no_grad():
        expected = prepared.eval()(given)
    step = float(expected.abs().max()) / 100  # of a grid of 256
    for kind in kinds:
        model = lq.load(tmp_path / "int8", kind)
        assert (model(given) - expected).abs().max() < 2 * step
        assert [spec.name for spec in model.signature.inputs] == ["history_0", "history_1"]
