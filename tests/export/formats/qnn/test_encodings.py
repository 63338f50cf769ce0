"""The float ONNX file and AIMET's encodings against the QDQ file that they are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lq
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec
from lq.export.artifact.calls import smallest_call
from lq.export.exporters import chosen
from lq.export.formats.onnx import write
from lq.export.formats.qnn import FILE
from lq.export.formats.qnn.encodings import ENCODINGS_FILE, FLOAT_FILE, encodings, write_encodings
from lq.export.formats.qnn.grids import QNNGrid
from lq.metrics import sqnr
from lq.timing.rows import artifact_mb
from tests.attention_nets import sequences, transformer
from tests.export.nets import IMAGES, Residual, TwoInputs, calibrated, example_of, images
from tests.tiny import quicken_deployment

onnx = pytest.importorskip("onnx")
np = pytest.importorskip("numpy")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from tests.export.formats.qnn.applied import Applied, session  # noqa: E402 (it imports them)


class Branches(nn.Module):
    """A layer that is called twice, a transposed one, a linear one on four dimensions; the input is returned, too."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.twice = nn.ConvTranspose2d(3, 8, 2, 2), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        up = F.relu6(self.up(x))
        return self.head(self.twice(torch.sigmoid(self.twice(up))) + up), up, x


WIDE = ActivationSpec(0, 65535)
NETS: dict[str, Any] = {
    "residual": (Residual, example_of(IMAGES), "qnn"),
    "two inputs": (TwoInputs, example_of(IMAGES, other=IMAGES * 2), "qnn"),
    "branches": (Branches, example_of(IMAGES), "qnn"),
    "attention": (transformer, example_of(sequences(8)), QConfig("qnn", attention="int8")),
    "signed": (Residual, example_of(IMAGES), "mcu"),
    "symmetric": (Residual, example_of(IMAGES), "tensorrt"),
    "sixteen bits": (Residual, example_of(IMAGES), QConfig("qnn", activation=WIDE)),
    "one of sixteen": (Residual, example_of(IMAGES), QConfig("qnn", overrides={"second": {"activation": WIDE}})),
    "four bits": (Residual, example_of(IMAGES), QConfig("qnn", weight=lq.WeightSpec(-7, 7))),
}


@pytest.fixture(scope="module", params=NETS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net, example, qconfig = NETS[request.param]
    prepared = calibrated(net(), example, qconfig)
    directory = tmp_path_factory.mktemp("qnn")
    opset = 21 if "sixteen" in request.param else 20
    write(prepared, smallest_call(prepared, example), directory / FILE, opset, dynamic=False)
    write_encodings(directory / FILE)
    return directory


@pytest.fixture
def applied(written: Path) -> Applied:
    return Applied(written / FLOAT_FILE, written / ENCODINGS_FILE)


def calls(model: Any, count: int = 3) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    shapes = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in model.graph.input}
    # Twice as far as what the ranges were measured on, so that all of them saturate.
    return [{n: 2 * random.standard_normal(s, np.float32) for n, s in shapes.items()} for _ in range(count)]


def test_the_encodings_make_of_the_float_file_what_the_qdq_file_computes(written: Path, applied: Applied) -> None:
    qdq = session(str(written / FILE))
    for feeds in calls(applied.model):
        for expected, got in zip(qdq.run(None, feeds), applied.run(feeds), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_integer_kernels_are_a_step_off_at_most(tmp_path: Path) -> None:
    prepared = calibrated(Residual(), example_of(IMAGES), "qnn")
    write(prepared, smallest_call(prepared, example_of(IMAGES)), tmp_path / FILE, dynamic=False)
    write_encodings(tmp_path / FILE)
    applied, kernels = Applied(tmp_path / FLOAT_FILE, tmp_path / ENCODINGS_FILE), session(str(tmp_path / FILE), True)
    step = applied.activations["output"]["scale"][0]
    for feeds in calls(applied.model, 10):
        assert np.abs(kernels.run(None, feeds)[0] - applied.run(feeds)[0]).max() < 1.5 * step


def test_every_pair_has_an_encoding_and_every_encoding_a_tensor(written: Path, applied: Applied) -> None:
    qdq, graph = onnx.load(written / FILE).graph, applied.model.graph
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear", "Cast"}
    stored = {t.name for t in qdq.initializer if t.data_type == onnx.TensorProto.INT8 and t.name.endswith(".weight")}
    assert stored == {name for name, entry in applied.parameters.items() if entry["bw"] == 8}
    assert {name for name, entry in applied.parameters.items() if entry["bw"] == 32} <= set(applied.constants)
    tensors = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    assert set(applied.activations) <= tensors
    pairs = [node for node in qdq.node if node.op_type == "QuantizeLinear"]
    assert len(applied.activations) == len(pairs)  # none of these nets quantizes a tensor twice alike


def test_parameters_lie_on_their_grids(applied: Applied) -> None:
    for name, entry in applied.parameters.items():
        assert entry["is_sym"], name
        assert set(entry["offset"]) == {-(2 ** (entry["bw"] - 1))}
        value = applied.constants[name]
        assert value.dtype == np.float32
        if entry["bw"] == 8:
            np.testing.assert_array_equal(applied.quantized(name, value), value)
        else:
            # int32 has more digits than float32 gives the biases.
            np.testing.assert_allclose(applied.quantized(name, value), value, rtol=1e-6, atol=entry["scale"][0])


def test_names_of_inputs_outputs_and_weights_stay(written: Path, applied: Applied) -> None:
    qdq, graph = onnx.load(written / FILE).graph, applied.model.graph
    assert [value.name for value in graph.input] == [value.name for value in qdq.input]
    assert [value.name for value in graph.output] == [value.name for value in qdq.output]
    layers = [node.name for node in qdq.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    assert [n.name for n in graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")] == layers


def test_the_float_file_is_the_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Residual()
    prepared = calibrated(net, example_of(IMAGES), "qnn")
    write(prepared, smallest_call(prepared, example_of(IMAGES)), tmp_path / FILE, dynamic=False)
    write_encodings(tmp_path / FILE)
    float_file = session(str(tmp_path / FLOAT_FILE))
    got = torch.cat([torch.from_numpy(float_file.run(None, {"x": x[None].numpy()})[0]) for x in images(8)])
    with torch.no_grad():
        # Weights are rounded, and nothing else: saturation has taken no ReLU with it.
        assert sqnr(prepared(images(8)), got) > 20


@pytest.mark.parametrize(
    ("grid", "symmetric", "offset"),
    [
        (QNNGrid((0.25,), (3,), 8, signed=False), False, [-3]),
        (QNNGrid((0.25,), (0,), 8, signed=False), False, [0]),
        (QNNGrid((0.25,), (3,), 16, signed=False), False, [-3]),
        (QNNGrid((0.25,), (-3,), 8, signed=True), False, [-125]),
        (QNNGrid((0.25,), (0,), 8, signed=True), True, [-128]),
        (QNNGrid((0.25, 0.5), (0, 1), 8, signed=True, axis=0), False, [-128, -129]),
        (QNNGrid((0.25,), (0,), 32, signed=True), True, [-(2**31)]),
    ],
)
def test_offsets_are_those_of_unsigned_integers(grid: QNNGrid, symmetric: bool, offset: list[int]) -> None:
    for key, made in (
        ("activation_encodings", encodings({"x": grid}, {})),
        ("param_encodings", encodings({}, {"x": grid})),
    ):
        (entry,) = made[key]
        assert (entry["is_sym"], entry["offset"], entry["bw"]) == (symmetric, offset, grid.bits)
        assert (entry["scale"], entry["enc_type"]) == (
            list(grid.scale),
            "PER_CHANNEL" if len(offset) > 1 else "PER_TENSOR",
        )


def test_the_flag_is_checked_before_the_training() -> None:
    pytest.importorskip("onnxruntime_qnn")
    with pytest.raises(TypeError, match=r"encodings='1\.0\.0'"):
        chosen([{"qnn": {"encodings": "1.0.0"}}])


def test_an_artifact_lists_the_files_and_one_without_them_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime_qnn")
    quicken_deployment(monkeypatch)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    prepared = lq.prepare(net, "qnn", example_args=(IMAGES,))
    lq.calibrate(prepared, [IMAGES])
    more = {FLOAT_FILE, ENCODINGS_FILE}
    for encoded in (True, False):
        lq.export_artifact(prepared, [IMAGES], tmp_path / "int8", [{"qnn": {"encodings": encoded}}])
        manifest = json.loads((tmp_path / "int8" / "lq.json").read_text())
        present = {path.name for path in (tmp_path / "int8").iterdir()}
        assert manifest["artifacts"]["qnn"]["encodings"] is encoded
        assert set(manifest["files"]) & more == present & more == (more if encoded else set())
        # What is deployed is the QDQ file.
        assert artifact_mb("qnn", tmp_path / "int8") == manifest["files"][FILE]["bytes"] / 1e6
        assert lq.load(tmp_path / "int8", "qnn")(IMAGES).shape == (4, 4)
