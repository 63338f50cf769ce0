"""Layers that were left in float stay so in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lq
from lq.deployment.deploy import export_artifact
from tests.tiny import quicken_deployment

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


@pytest.mark.parametrize(
    ("first", "excluded", "last"),
    [
        (nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Conv2d(4, 2, 1)),
        (nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 4, 3), nn.Conv2d(4, 2, 1)),
        (nn.Linear(7, 6), nn.Linear(6, 4), nn.Linear(4, 2)),
    ],
    ids=["convolution", "transposed convolution", "linear"],
)
def test_an_excluded_layer_between_two_quantized_ones(
    first: nn.Module, excluded: nn.Module, last: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken_deployment(monkeypatch)
    x = torch.randn(4, 3, 7, 7)
    prepared = lq.prepare(nn.Sequential(first, excluded, last), lq.QConfig(exclude=("1",)), (x,))
    lq.calibrate(prepared, [x], show_progress=False)
    done = export_artifact(prepared, [x], tmp_path / "int8", ["onnx"])
    assert done.parity["onnx"].sqnr_db > 60  # 42 with weights that ONNX Runtime has rounded
    weights: dict[str, Any] = {t.name: t for t in onnx.load(tmp_path / "int8" / "int8.onnx").graph.initializer}
    assert sorted(t.data_type == onnx.TensorProto.INT8 for t in weights.values() if len(t.dims) > 1) == [0, 1, 1]
