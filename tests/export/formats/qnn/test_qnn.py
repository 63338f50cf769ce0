"""Files for Qualcomm's NPU, in the simulator of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.specs import ActivationSpec
from lq.export.exporters import chosen
from lq.export.formats.qnn import FILE
from lq.export.formats.qnn.encodings import ENCODINGS_FILE
from lq.metrics import sqnr
from tests.export.formats.litert.ran import steps_apart
from tests.export.nets import IMAGES, calibrated, example_of, images, residual, round_trip

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime_qnn")
pytest.importorskip("onnxscript")

EXAMPLE = example_of(IMAGES)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[str, Any], Path]:
    directory = tmp_path_factory.mktemp("qnn")
    prepared = residual("qnn")
    return prepared, *round_trip("qnn", prepared, EXAMPLE, directory), directory


@pytest.mark.parametrize("count", [1, 12])
def test_the_npu_computes_what_was_trained_at_any_batch_size(exported: Any, count: int) -> None:
    prepared, model, _, _ = exported
    x = images(count)
    with torch.no_grad():
        # It rescales sums in fixed point: a layer is a step off where its sum is next to a tie, and there are seven.
        assert steps_apart(prepared(x), model(x)) <= 2


def test_every_layer_is_on_integers_and_nothing_on_the_cpu(exported: Any) -> None:
    _, _, info, _ = exported
    assert info["int8_layers"] == {"Conv2d": 4, "DepthWiseConv2d": 1, "FullyConnected": 2}
    assert info["float_layers"] == info["float_operators"] == info["cpu_operators"] == []


def test_the_file_has_fixed_shapes_uint8_activations_and_int8_weights(exported: Any) -> None:
    *_, directory = exported
    graph = onnx.load(directory / FILE).graph
    shapes = [[size.dim_value for size in value.type.tensor_type.shape.dim] for value in graph.input]
    assert shapes == [[1, 3, 8, 8]]
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zero_points = {node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert {tensors[name].dtype.name for name in zero_points} == {"uint8"}
    assert {tensors[name].dtype.name for name in tensors if name.endswith(".weight")} == {"int8"}


def test_a_first_layer_keeps_its_three_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    # The exporter "onnx" pads such a layer's integers, which the provider does not open.
    prepared = calibrated(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), EXAMPLE, "qnn")
    model, info = round_trip("qnn", prepared, EXAMPLE, tmp_path)
    assert info["int8_layers"] == {"Conv2d": 1}
    with torch.no_grad():
        expected = prepared(IMAGES)
    got = model(IMAGES)
    assert steps_apart(expected, got) <= 1
    # It rounds sums once more before it rounds them to a step; more than this would be another scale.
    assert 0 < (got - expected).abs().gt(1e-3).float().mean() < 0.1


class Between(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.function(F.relu(self.first(x))))
        return out


def test_what_the_npu_lacks_is_named_and_may_go_to_the_cpu(tmp_path: Path) -> None:
    torch.manual_seed(0)
    prepared = calibrated(Between(torch.erf), EXAMPLE, "qnn")
    refused = r"QNN lacks \w+ \(Erf: .* not supported by QNN EP\)\. Change .* \{'qnn': \{'cpu_fallback': True\}\}\."
    with pytest.raises(ValueError, match=refused):
        round_trip("qnn", prepared, EXAMPLE, tmp_path)
    model, info = round_trip("qnn", prepared, EXAMPLE, tmp_path, cpu_fallback=True)
    assert len(info["cpu_operators"]) == 1
    assert info["int8_layers"] == {"Conv2d": 2}
    with torch.no_grad():
        assert steps_apart(prepared(IMAGES), model(IMAGES)) <= 2  # one for each layer


def test_what_the_npu_computes_in_float_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    prepared = calibrated(Between(nn.LayerNorm(8)), EXAMPLE, "qnn")
    model, info = round_trip("qnn", prepared, EXAMPLE, tmp_path)
    assert [name.rpartition(" ")[2] for name in info["float_operators"]] == ["(LayerNorm)"]
    with torch.no_grad():
        # The NPU has floats of 16 bits: 11 of mantissa are less than a step of 8 on most values.
        assert steps_apart(prepared(IMAGES), model(IMAGES)) <= 3


def test_options_are_checked_before_the_training() -> None:
    with pytest.raises(TypeError, match=r"cpu_fallback='yes'"):
        chosen([{"qnn": {"cpu_fallback": "yes"}}])
    with pytest.raises(ValueError, match=r"opset=9 must be from"):
        chosen([{"qnn": {"opset": 9}}])


WIDE = ActivationSpec(0, 65535)


def test_activations_of_sixteen_bits_are_256_times_as_fine(tmp_path: Path) -> None:
    prepared = residual(QConfig("qnn", activation=WIDE))
    model, info = round_trip("qnn", prepared, EXAMPLE, tmp_path)
    assert (info["opset"], sum(info["int8_layers"].values()), info["float_layers"]) == (21, 7, [])
    x = images(8)
    with torch.no_grad():
        assert sqnr(prepared(x), model(x)) > 70  # 8 bits have 48
    tensors = {tensor.name: tensor for tensor in onnx.load(tmp_path / FILE).graph.initializer}
    assert {tensors[name].data_type for name in tensors if name.endswith(".weight")} == {onnx.TensorProto.INT8}


@pytest.mark.parametrize("name", ["x", "stem", "point", "add", "head"])
def test_one_activation_of_sixteen_bits_among_those_of_eight(name: str, tmp_path: Path) -> None:
    prepared = residual(QConfig("qnn", overrides={name: LayerQConfig(activation=WIDE)}))
    model, info = round_trip("qnn", prepared, EXAMPLE, tmp_path, encodings=True)
    assert (sum(info["int8_layers"].values()), info["float_layers"], info["float_operators"]) == (7, [], [])
    x = images(8)
    with torch.no_grad():
        assert sqnr(prepared(x), model(x)) > 40
    entries = json.loads((tmp_path / ENCODINGS_FILE).read_text())["activation_encodings"]
    # What is quantized twice to get through an operator is no tensor of the float file.
    assert sorted(entry["bw"] for entry in entries) == [*[8] * (len(entries) - 1), 16]


@pytest.mark.parametrize("keep", ["ends", "nothing"])
def test_activations_of_four_bits(keep: str, tmp_path: Path) -> None:
    prepared = residual(QConfig("qnn", activation=ActivationSpec(0, 15), keep=keep))
    model, info = round_trip("qnn", prepared, EXAMPLE, tmp_path)
    assert info["float_layers"] == info["float_operators"] == info["cpu_operators"] == []
    with torch.no_grad():
        expected, got = prepared(images(4)), model(images(4))
    assert sqnr(expected, got) >= 15  # a step of four bits is a fifteenth of the range
    assert info["int8_layers"] == {"Conv2d": 4, "DepthWiseConv2d": 1, "FullyConnected": 2}


def test_an_opset_without_sixteen_bits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"opset=20 has no activations of 16 bits; leave it out for 21\."):
        round_trip("qnn", residual(QConfig("qnn", activation=WIDE)), EXAMPLE, tmp_path, opset=20)
