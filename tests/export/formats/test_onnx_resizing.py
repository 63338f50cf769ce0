"""Resizing has the pixels that PyTorch makes, also where a runtime would round to others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.export.formats.onnx import write_program
from lq.export.formats.program import float_program

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Resizes(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, **self.settings)


def written(settings: dict[str, Any], x: Tensor, directory: Path) -> tuple[Path, set[str]]:
    """The file of a model that resizes, and the operators in it."""
    program, _ = float_program(Resizes(**settings).eval(), ((x,), {}))
    path = directory / "resizes.onnx"
    write_program(program, path)
    return path, {node.op_type for node in onnx.load(path).graph.node}


def in_runtimes(path: Path, x: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(path))
    found = [session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]]
    try:
        import openvino
    except ImportError:
        pass
    else:
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(openvino.convert_model(path), "CPU", settings)
        found.append(compiled([x.numpy()])[0])
    return [torch.from_numpy(output) for output in found]


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ((90,), {"size": 50}),
        ((45,), {"scale_factor": 1.4}),
        ((42, 9), {"size": (24, 7)}),
        ((20, 30), {"scale_factor": (1.7, 0.3)}),
        ((10, 4, 45), {"size": (6, 8, 25)}),
        ((23, 45), {"scale_factor": 1.4, "mode": "bilinear"}),
        ((45, 45), {"scale_factor": 1.4, "mode": "bicubic", "align_corners": True}),
    ],
)
def test_uncertain_pixels_are_those_of_pytorch(sizes: tuple[int, ...], settings: dict[str, Any], tmp_path: Path):
    path, operators = written(settings, torch.rand(2, 3, *sizes), tmp_path)
    assert "Resize" not in operators
    x = torch.randn(5, 3, *sizes)
    for got in in_runtimes(path, x):
        # Products of matrices add in another order.
        torch.testing.assert_close(got, F.interpolate(x, **settings), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ((7, 9), {"scale_factor": 2}),
        ((8, 12), {"size": (4, 18)}),
        ((7, 9), {"scale_factor": 2, "mode": "bilinear"}),
    ],
)
def test_certain_pixels_stay_one_operator(sizes: tuple[int, ...], settings: dict[str, Any], tmp_path: Path):
    path, operators = written(settings, torch.rand(2, 3, *sizes), tmp_path)
    assert "Resize" in operators
    x = torch.randn(5, 3, *sizes)
    for got in in_runtimes(path, x):
        torch.testing.assert_close(got, F.interpolate(x, **settings), atol=1e-5, rtol=0)


def test_linear_resizing_to_uncertain_sizes_is_refused(tmp_path: Path):
    settings = {"scale_factor": 1.4, "mode": "linear"}
    with pytest.raises(ValueError, match=r"cannot resize \(45,\) by a factor to \(62,\).*size=\(62,\)"):
        written(settings, torch.rand(2, 3, 45), tmp_path)
