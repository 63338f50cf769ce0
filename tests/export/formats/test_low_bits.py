"""Weights of few bits: smaller files, the same integers, the same int8 kernels."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lq.backends.prepare import prepare
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.conversion.graph import as_graph
from lq.export.exporters import EXPORTERS, chosen, stored_bits
from lq.export.formats.low_bits import two_in_a_byte
from lq.metrics import sqnr
from lq.ptq.calibrate import calibrate
from lq.ptq.layers import layers_of
from tests.export.nets import example_of, images, residual, round_trip

FOUR = QConfig("x86_vnni", weight=WeightSpec(-7, 7), keep="nothing")
MIXED = QConfig("x86_vnni", keep="nothing", overrides={
    "second": LayerQConfig(weight=WeightSpec(-7, 7)),
    "depthwise": LayerQConfig(weight=WeightSpec(-3, 3)),
    "hidden": LayerQConfig(weight=WeightSpec(-1, 1)),
})  # fmt: skip
EXAMPLE = example_of(images(4))
NEEDS = {"onnx": "onnxruntime", "openvino": "openvino", "pt2": "torch", "torch": "torch"}


def integers(prepared: Any) -> dict[str, Any]:
    """The integers of every layer, by its name."""
    found = {}
    for layer in layers_of(prepared):
        found[layer.name] = layer.module.integer_weight(layer.norm)[0].numpy()
    return found


@pytest.mark.parametrize("qconfig", [FOUR, MIXED], ids=["four", "mixed"])
@pytest.mark.parametrize("kind", NEEDS)
def test_every_format_computes_what_was_trained_on_int8_kernels(kind: str, qconfig: QConfig, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS[kind])
    prepared = residual(qconfig)
    model, info = round_trip(kind, prepared, EXAMPLE, tmp_path)
    with torch.no_grad():
        assert sqnr(prepared(images(50)), model(images(50))) >= 30  # OpenVINO adds before it rounds; others: infinite
    assert not info.get("float_layers")
    layers = {name: count for name, count in info.get("int8_layers", {}).items() if "Add" not in name}
    assert kind == "pt2" or sum(layers.values()) == 7


@pytest.mark.parametrize(("keep", "largest"), [("ends", 15), ("nothing", 15), ("nothing", 3)])
def test_onnx_runtime_computes_activations_of_few_bits_on_int8_kernels(keep: str, largest: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    prepared = residual(QConfig("x86_vnni", activation=ActivationSpec(0, largest), keep=keep))
    model, info = round_trip("onnx", prepared, EXAMPLE, tmp_path)
    with torch.no_grad():
        assert sqnr(prepared(images(50)), model(images(50))) >= 60
    assert info["float_layers"] == []
    assert sum(count for name, count in info["int8_layers"].items() if "Add" not in name) == 7


def test_onnx_holds_two_weights_in_a_byte(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    prepared = residual(MIXED)
    _, info = round_trip("onnx", prepared, EXAMPLE, tmp_path)
    model = onnx.load(tmp_path / "int8.onnx")
    assert info["opset"] == {o.domain: o.version for o in model.opset_import}[""] == 21
    stored = {t.name.removesuffix(".weight"): t for t in model.graph.initializer if t.name.endswith(".weight")}
    for name, exact in integers(prepared).items():
        small = name in ("second", "depthwise", "hidden")
        assert (stored[name].data_type == onnx.TensorProto.INT4) == small, name
        values = onnx.numpy_helper.to_array(stored[name]).astype(np.int8)
        assert len(stored[name].raw_data) == (-(-values.size // 2) if small else values.size)
        same = values if values.shape == exact.shape else values.T
        assert np.array_equal(same, exact) or name == "stem", "the stem has another channel"


def test_an_older_opset_is_kept_and_holds_bytes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model, info = round_trip("onnx", residual(FOUR), EXAMPLE, tmp_path, opset=20)
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert info["opset"] == 20
    assert onnx.TensorProto.INT4 not in kinds
    assert model(images(3)).shape == (3, 4)


def test_tensorrt_gets_the_bytes_that_it_reads(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    four = QConfig("tensorrt", weight=WeightSpec(-7, 7), keep="nothing")
    round_trip("tensorrt", residual(four), EXAMPLE, tmp_path)
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "int8.tensorrt.onnx").graph.initializer}
    assert onnx.TensorProto.INT4 not in kinds


def test_openvino_holds_two_weights_in_a_byte(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    prepared = residual(MIXED)
    round_trip("openvino", prepared, EXAMPLE, tmp_path)
    nodes = openvino.Core().read_model(tmp_path / "int8.xml").get_ordered_ops()
    small = [n for n in nodes if n.get_type_name() == "Constant" and n.get_element_type() == openvino.Type.i4]
    exact = integers(prepared)
    expected = [exact[name] for name in ("second", "depthwise", "hidden")]
    assert {bytes(n.data.view(np.uint8).reshape(-1)) for n in small} == {bytes(two_in_a_byte(e)) for e in expected}


def wide(bits: int) -> Any:
    torch.manual_seed(0)
    qconfig = QConfig("x86_vnni", weight=WeightSpec(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1), keep="nothing")
    net = prepare(nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 4)), qconfig, (torch.randn(2, 256),))
    calibrate(net, [torch.randn(32, 256)], show_progress=False)
    return as_graph(net)


def test_options_that_store_bytes_are_counted() -> None:
    assert stored_bits(4, ["torch", {"onnx": {"opset": 21}}]) == stored_bits(4, [{"onnx": {}}]) == 4
    assert stored_bits(4, ["torch", {"onnx": {"opset": 20}}]) == 8
    assert stored_bits(3, [{"litert": {"full_int8": True}, "torch": {}}]) == 8


@pytest.mark.parametrize(("kind", "bits"), [("torch", 2), ("torch", 4), ("pt2", 3), ("onnx", 2), ("openvino", 4)])
def test_files_are_as_small_as_the_stored_bits_say(kind: str, bits: int, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS[kind])
    sizes = {}
    for width in (bits, 8):
        chosen([kind])[0].export(wide(width), example_of(torch.randn(2, 256)), tmp_path)
        sizes[width] = sum((tmp_path / file).stat().st_size for file in EXPORTERS[kind].files)
    saved = (256 * 512 + 512 * 4) * (8 - stored_bits(bits, [kind])) // 8
    assert sizes[8] - sizes[bits] >= saved - 2000, "a Cast for each layer"


def test_archives_of_eight_bits_are_not_compressed(tmp_path: Path) -> None:
    kinds = {}
    for bits in (4, 8):
        chosen(["torch"])[0].export(wide(bits), example_of(torch.ones(2, 256)), tmp_path)
        kinds[bits] = {record.compress_type for record in zipfile.ZipFile(tmp_path / "int8.pt").infolist()}
    assert kinds[4] == {zipfile.ZIP_DEFLATED}
    assert zipfile.ZIP_STORED in kinds[8], "PyTorch itself compresses code"
