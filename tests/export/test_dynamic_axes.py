"""Files that take other heights, widths and lengths than those of the example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lq
from lq.conversion.graph import as_graph
from lq.deployment.rehearsal import rehearse
from lq.metrics.fidelity import sqnr
from lq.timing.bench import bench
from tests.tiny import quicken_deployment

KINDS = ["torch", "onnx", "tensorrt", "pt2", "openvino"]


class Segments(nn.Module):
    """Writes the size of its input into a resizing, and needs it again for a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = torch.relu(self.down(x))
        inner = torch.relu(self.middle(F.max_pool2d(first, 2)))
        joined = torch.cat([first, F.interpolate(inner, size=first.shape[2:], mode="nearest")], 1)
        return {"masks": F.interpolate(self.head(joined), size=x.shape[2:], mode="bilinear")}


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.block(self.embedding(ids), src_key_padding_mask=mask).mean(1))
        return logits


def tokens(batch: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, 40, (batch, length), generator=generator)
    return {"ids": ids, "mask": torch.arange(length).expand(batch, -1) >= length - 2}


def exported(net: nn.Module, example: Any, folder: Path, kinds: list[Any], axes: Any) -> tuple[nn.Module, Any]:
    calls = {"example_kwargs": example} if isinstance(example, dict) else {"example_args": (example,)}
    prepared = lq.prepare(net, "tensorrt" if "tensorrt" in kinds else "portable", **calls)
    lq.calibrate(prepared, [example])
    with pytest.MonkeyPatch.context() as patch:
        quicken_deployment(patch)
        done = lq.export_artifact(prepared, [example], folder / "int8", kinds, dynamic_axes=axes)
    return prepared.eval(), done


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    axes = {"x": {2: "height", 3: "width"}}
    return exported(Segments(), torch.rand(4, 3, 16, 20), tmp_path_factory.mktemp("dynamic"), KINDS, axes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_runtime_takes_any_height_and_width(segments: tuple[nn.Module, Any], kind: str) -> None:
    prepared, done = segments
    int8 = lq.load(done.directory, kind)
    assert str(int8.signature) == "(x: float32(batch, 3, height, width))"
    for shape in ((4, 3, 16, 20), (1, 3, 24, 48), (2, 3, 33, 17)):
        x = torch.rand(shape)
        with torch.no_grad():
            expected, got = prepared(x)["masks"], int8(x)["masks"]
        assert got.shape == expected.shape == (shape[0], 2, *shape[2:])
        torch.testing.assert_close(got, expected, atol=0.05, rtol=0)


def test_the_file_and_lq_json_hold_the_names(segments: tuple[nn.Module, Any]) -> None:
    directory = segments[1].directory
    graph = onnx.load(directory / "int8.onnx").graph
    sizes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    assert sizes == [["batch", 3, "height", "width"], ["batch", 2, "height", "width"]]
    (entry,) = json.loads((directory / "lq.json").read_text())["signature"]["inputs"]
    assert (entry["shape"], entry["sizes"]) == (["batch", 3, "height", "width"], [4, 3, 16, 20])


def test_the_gate_compares_two_other_sizes_too(segments: tuple[nn.Module, Any]) -> None:
    assert {kind: parity.samples for kind, parity in segments[1].parity.items()} == dict.fromkeys(KINDS, 12)


def test_what_does_not_fit_is_said_with_the_names(segments: tuple[nn.Module, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"for \(x: float32\(batch, 3, height, width\)\), but x is float32\(1, 4, 16, 20\)"
    ):
        lq.load(segments[1].directory, "onnx")(torch.rand(1, 4, 16, 20))


def test_bench_takes_the_sizes_of_the_example(segments: tuple[nn.Module, Any]) -> None:
    rows = bench(segments[1].directory, batch_sizes=(2,), min_time=0.01, compile=False).rows
    assert {"int8 torch", "int8 onnx", "int8 openvino"} <= {row["model"] for row in rows}


@pytest.mark.parametrize("kind", ["torch", "onnx", "pt2", "openvino"])
def test_a_transformer_takes_any_length(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    axes = {"ids": {1: "length"}, "mask": {1: "length"}}
    prepared, done = exported(Reads(), tokens(4, 10), tmp_path, [kind], axes)
    int8 = lq.load(done.directory, kind)
    assert str(int8.signature) == "(ids: int64(batch, length), mask: bool(batch, length))"
    for batch, length in ((4, 10), (2, 3), (1, 37)):
        call = tokens(batch, length)
        with torch.no_grad():
            torch.testing.assert_close(int8(**call), prepared(**call), atol=0.1, rtol=0)


def test_without_it_a_file_takes_the_size_of_the_example_alone(tmp_path: Path) -> None:
    _, done = exported(Segments(), torch.rand(4, 3, 16, 20), tmp_path, ["onnx"], None)
    with pytest.raises(ValueError, match=r"but x is float32\(1, 3, 24, 48\)"):
        lq.load(done.directory, "onnx")(torch.rand(1, 3, 24, 48))


def test_formats_of_one_size_say_so_and_refuse_others(tmp_path: Path) -> None:
    _, done = exported(Segments(), torch.rand(4, 3, 16, 20), tmp_path, ["torch", "litert"], {"x": [2, 3]})
    assert "litert: the file holds the sizes of the example, x (3, 16, 20) behind the batch" in done.notes
    assert done.parity["litert"].samples == 4
    litert = lq.load(done.directory, "litert")
    assert str(litert.signature) == "(x: float32(batch, 3, 16, 20))"
    with pytest.raises(ValueError, match=r"for \(x: float32\(batch, 3, 16, 20\)\), but x is float32\(1, 3, 24, 48\)"):
        litert(torch.rand(1, 3, 24, 48))


def test_where_no_file_could_have_one_it_is_refused_at_once() -> None:
    with pytest.raises(
        ValueError, match=r"files of litert, mcu hold the sizes of the example\. Add one of torch, onnx"
    ):
        lq.QATCallback(exporters=["litert", "mcu"], dynamic_axes={"x": [2, 3]})
    with pytest.raises(TypeError, match="x=2 must be a list of dimensions"):
        lq.QATCallback(dynamic_axes={"x": 2})  # type: ignore[dict-item]


class Tagger(nn.Module):
    def __init__(self, kind: Any, **settings: Any) -> None:
        super().__init__()
        self.rnn = kind(8, 16, **settings)
        self.head = nn.Linear(32 if settings.get("bidirectional") else 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x)[0])
        return out


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(nn.LSTM, {}), (nn.GRU, {"bidirectional": True}), (nn.LSTM, {"num_layers": 2, "bidirectional": True})],
)
def test_recurrent_layers_take_any_length(kind: Any, settings: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, kinds = Tagger(kind, batch_first=True, **settings), ["torch", "onnx", "openvino", "pt2"]
    prepared, done = exported(net, torch.rand(4, 12, 8), tmp_path, kinds, {"x": {1: "length"}})
    for name in kinds:
        for steps in (5, 31):
            x = torch.rand(2, steps, 8)
            with torch.no_grad():
                torch.testing.assert_close(lq.load(done.directory, name)(x), prepared(x), atol=0.01, rtol=0)


def test_a_file_that_holds_the_length_all_the_same_is_refused_before_a_training() -> None:
    prepared = lq.prepare(Tagger(nn.RNN, batch_first=True), example_args=(torch.rand(4, 12, 8),))
    lq.calibrate(prepared, [torch.rand(4, 12, 8)])
    graph = as_graph(prepared, axes={"x": {1: "length"}})
    with pytest.raises(ValueError, match=r"'onnx', so the run stops before the training: for inputs of another size"):
        rehearse(graph, ((torch.rand(4, 12, 8),), {}), ["onnx"])


class Pooled(nn.Module):
    """Poolings that ONNX counts in other ways than PyTorch, or that torch.onnx refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.conv(x)
        pooled = [
            F.avg_pool2d(y, 2, ceil_mode=True),
            F.avg_pool2d(y, 3, 2, 1, ceil_mode=True),
            F.avg_pool2d(y, 3, 3, 1, ceil_mode=True),
            F.avg_pool2d(y, 2, divisor_override=3),
            F.avg_pool1d(y.flatten(1, 2), 2, 2, ceil_mode=True).unflatten(1, (4, -1)),
            F.max_pool1d(y.flatten(1, 2), 2, 2, 1).unflatten(1, (4, -1)),
            F.max_pool1d(y.flatten(1, 2), 3, 2, 1, ceil_mode=True).unflatten(1, (4, -1)),
            F.max_pool2d(y, 2, 2, 1, ceil_mode=True),
            F.max_pool2d(y, 2, 3, 1, ceil_mode=True),
            F.max_pool2d(y, 3, 3, 1, ceil_mode=True),
            F.adaptive_avg_pool2d(y, (None, 1)),
        ]
        return [self.head(one) for one in pooled]


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_pooling_is_that_of_pytorch_at_sizes_that_leave_a_remainder(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    prepared, done = exported(Pooled(), torch.randn(2, 3, 16, 16), tmp_path, [kind], {"x": [2, 3]})
    int8, x = lq.load(done.directory, kind), torch.randn(2, 3, 15, 13)
    with torch.no_grad():
        for place, (expected, got) in enumerate(zip(prepared(x), int8(x), strict=True)):
            assert got.shape == expected.shape, place
            assert sqnr(expected, got) > 45, place
