from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lq.export.exporters import chosen
from lq.export.formats.tensorrt import FILE
from lq.metrics import sqnr
from tests.export.nets import example_of, images, residual, round_trip

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXAMPLE = example_of(images(4))


def test_it_is_symmetric_int8_everywhere(tmp_path: Path) -> None:
    prepared = residual("tensorrt")
    model, info = round_trip("tensorrt", prepared, EXAMPLE, tmp_path, opset=19)
    onnx.checker.check_model(tmp_path / FILE, full_check=True)
    proto = onnx.load(tmp_path / FILE)
    assert {o.domain: o.version for o in proto.opset_import}[""] == info["opset"] == 19
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            held[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        zero_points = [held[node.input[2]] for node in proto.graph.node if node.op_type == kind]
        assert {z.dtype.name for z in zero_points} == {"int8"}
        assert not any(z.any() for z in zero_points)
    weights = [value for name, value in held.items() if name.endswith(".weight")]
    assert len(weights) == 7
    assert {int(abs(w.astype(int)).max()) for w in weights} == {127}
    with torch.no_grad():
        assert sqnr(prepared(images(9)), model(images(9))) >= 50  # a flipped tie of these few gives 50


def test_it_is_refused_for_models_trained_otherwise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"TensorRT takes symmetric int8 .* Train it with qconfig='tensorrt', or expo"):
        chosen(["tensorrt"])[0].export(residual(), EXAMPLE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_its_options_are_checked_before_training() -> None:
    with pytest.raises(ValueError, match="opset=7 must be from 18"):
        chosen([{"tensorrt": {"opset": 7}}])
