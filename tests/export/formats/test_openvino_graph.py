"""What OpenVINO would compute with other numbers than it was told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lq
from lq.deployment.deploy import export_artifact
from tests.tiny import quicken_deployment

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnxscript")


class Between(nn.Module):
    """A function between two quantized layers, the first of which has negative outputs."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first, self.last = nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.function(self.first(x)))
        return out


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "averages that count padding": lambda x: F.avg_pool1d(x, 3, 2, 1),
    "averages of a padded tensor": lambda x: F.avg_pool1d(F.pad(x, (1, 1)), 3, 2),
    "padding with a number": lambda x: F.pad(x, (2, 1), value=0.7),
    "bounds between two integers": lambda x: F.hardtanh(x, -0.401, 0.2017),
    "a bound": lambda x: x.clamp(max=0.2017),
    "comparison with 0": lambda x: x * (x > 0).sum(1, keepdim=True),
    "roots": lambda x: x.abs().pow(0.1),
    "roots of each": lambda x: x.abs() ** (torch.arange(x.shape[-1]) / 20 + 0.1),
    "masks": lambda x: x.masked_fill(x > 0, 0.1),
}


@pytest.mark.parametrize("what", FUNCTIONS)
def test_functions_on_integers(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)
    torch.manual_seed(1)
    x = torch.randn(8, 3, 13)
    prepared = lq.prepare(Between(FUNCTIONS[what]), example_args=(x,))
    lq.calibrate(prepared, [x], show_progress=False)
    done = export_artifact(prepared, [x, 3 * x[:5]], tmp_path / "int8", ["openvino"])
    assert done.parity["openvino"].sqnr_db > 60


def test_the_integers_of_a_relu_are_pooled_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)
    x = torch.randn(8, 3, 13)
    prepared = lq.prepare(Between(lambda x: F.avg_pool1d(x.relu(), 3, 2, 1)), example_args=(x,))
    lq.calibrate(prepared, [x], show_progress=False)
    done = export_artifact(prepared, [x], tmp_path / "int8", ["openvino"])
    assert done.parity["openvino"].sqnr_db > 60
    assert 'type="Maximum"' not in (tmp_path / "int8" / "int8.xml").read_text()


def test_what_it_cannot_convert_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)
    x = torch.randn(8, 3, 13)
    prepared = lq.prepare(Between(lambda x: torch.hstack([x[0, 0], x[0, 1]]).mean() * x), example_args=(x,))
    lq.calibrate(prepared, [x], show_progress=False)
    with pytest.raises(RuntimeError, match=r"OpenVINO has no conversion of .*SequenceMap.*leave 'openvino' out"):
        export_artifact(prepared, [x], tmp_path / "int8", ["openvino"])
