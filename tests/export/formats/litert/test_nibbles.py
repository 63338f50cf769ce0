"""Weights of four bits, two in a byte: the same integers on LiteRT's own kernels, in a smaller file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lq.backends.prepare import prepare
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.specs import WeightSpec
from lq.conversion.graph import as_graph
from lq.export.exporters import stored_bits
from lq.export.formats.litert.file import File, FileTensor, LiteRTGrid, Size
from lq.export.formats.litert.nibbles import with_int4_weights
from lq.ptq.calibrate import calibrate
from tests.export.nets import example_of, images, residual, round_trip

FOUR = WeightSpec(-7, 7)


def kinds(file: Path) -> Counter[str]:
    """How many tensors have each type."""
    schema: Any = pytest.importorskip("ai_edge_litert.schema_py_generated")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(file.read_bytes()), 0))
    names = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    return Counter(names[tensor.type] for tensor in model.subgraphs[0].tensors)


@pytest.mark.parametrize("some", [False, True], ids=["all", "some"])
def test_the_integers_are_those_of_bytes(some: bool, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    overrides = {name: LayerQConfig(weight=FOUR) for name in ("second", "depthwise", "hidden")}
    qconfig = (
        QConfig("litert", keep="nothing", overrides=overrides) if some else QConfig("litert", FOUR, keep="nothing")
    )
    prepared, (small, large) = residual(qconfig), (tmp_path / "int4", tmp_path / "int8")
    for place in (small, large):
        place.mkdir()
    packed, _ = round_trip("litert", prepared, example_of(images(4)), small, int4_weights=True, xnnpack=False)
    plain, info = round_trip("litert", prepared, example_of(images(4)), large, xnnpack=False)
    for batch in (images(4), images(1), images(50)):
        assert torch.equal(packed(batch), plain(batch))
    found = kinds(small / "int8.tflite")
    assert found["INT4"] == (3 if some else sum(info["int8_layers"].values()))
    assert kinds(large / "int8.tflite")["INT4"] == 0
    assert (small / "int8.tflite").stat().st_size < (large / "int8.tflite").stat().st_size


def test_it_halves_the_weights(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    net, x = nn.Sequential(nn.Linear(255, 513), nn.ReLU(), nn.Linear(513, 7)), torch.randn(4, 255)
    prepared = prepare(net, QConfig("litert", FOUR, keep="nothing"), (x,))
    calibrate(prepared, [x], show_progress=False)
    sizes = []
    for int4 in (True, False):
        round_trip("litert", as_graph(prepared), ((x,), {}), tmp_path, int4_weights=int4)
        sizes.append((tmp_path / "int8.tflite").stat().st_size)
    weights = 255 * 513 + 513 * 7
    assert abs(sizes[1] - sizes[0] - weights / 2) < 64


def test_a_weight_that_something_else_reads_stays_as_it_is() -> None:
    file, grid = File(), LiteRTGrid((0.1,))
    content = np.arange(-4, 4, dtype=np.int8).reshape(2, 4)
    x = file.tensor(FileTensor("x", (Size(1), Size(4)), "int8", grid))
    shared, own = (file.constant(name, content, grid) for name in ("shared", "own"))
    large = file.constant("large", content * 3, grid)
    out = file.tensor(FileTensor("out", (Size(1), Size(2)), "int8", grid))
    for weight in (shared, own, large):
        file.operator("FULLY_CONNECTED", [x, weight, -1], [out])
    file.operator("DEQUANTIZE", [shared], [out])
    made = with_int4_weights(file)
    assert [made.tensors[t].dtype for t in (shared, own, large)] == ["int8", "int4", "int8"]
    assert [operator.version for operator in made.operators] == [5, 10, 5, 2]
    assert made.tensors[own].shape == file.tensors[own].shape
    assert file.tensors[own].dtype == "int8", "the given file is left as it is"


def test_a_budget_counts_what_is_stored() -> None:
    assert stored_bits(3, [{"litert": {"int4_weights": True, "xnnpack": False}}]) == 4
    assert stored_bits(3, ["litert"]) == stored_bits(3, [{"litert": {"xnnpack": False}}]) == 8
