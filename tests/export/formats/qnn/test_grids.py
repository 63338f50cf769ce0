"""Grids of biases."""

from __future__ import annotations

from typing import Any

import pytest

from lq.export.formats.qnn.grids import QNNGrid, bias_grids, grid_of

onnx = pytest.importorskip("onnx")
np = pytest.importorskip("numpy")

X, Y = QNNGrid((0.5,), (3,), 8, signed=False), QNNGrid((0.25,), (0,), 8, signed=False)
W, ONE = QNNGrid((0.5, 2.0), (0, 0), 8, signed=True, axis=1), QNNGrid((4.0,), (0,), 8, signed=True)
BIAS = QNNGrid((0.25, 1.0), (0, 0), 32, signed=True, axis=0)


def grids(nodes: str, weight: QNNGrid = W) -> dict[str, QNNGrid]:
    constants = "float[2,2] w = {1, 2, 3, 4}, float[2] b = {1, 2}, float[1,2] matrix = {1, 2}"
    head = '<ir_version: 8, opset_import: ["" : 20]> g (float[1,2] x, float[1,2] y, float[1,2] u) => (float[1,2] o)'
    graph: Any = onnx.parser.parse_model(f"{head} <{constants}> {{ {nodes} }}").graph
    return bias_grids(graph, {"x": X, "y": Y}, {"w": weight})


def test_a_grid_is_read_from_scale_zero_point_and_axis() -> None:
    constants = {
        name: onnx.numpy_helper.from_array(np.array(value), name)
        for name, value in (
            ("scale", np.float32(0.5)),
            ("zero", np.uint16(3)),
            ("scales", np.array([0.5, 2], np.float32)),
            ("zeros", np.array([0, -1], np.int8)),
        )
    }

    def of(*names: str, **axis: int) -> QNNGrid:
        return grid_of(onnx.helper.make_node("DequantizeLinear", ["x", *names], ["y"], **axis), constants)

    assert of("scale", "zero", axis=1) == QNNGrid((0.5,), (3,), 16, signed=False, axis=None)
    assert of("scales", "zeros", axis=0) == QNNGrid((0.5, 2.0), (0, -1), 8, signed=True, axis=0)
    assert of("scales", "zeros").axis == 1


def test_the_lowest_integer() -> None:
    assert [QNNGrid((1.0,), (0,), bits, signed).lowest for bits in (8, 16) for signed in (True, False)] == [
        *(-128, 0),
        *(-32768, 0),
    ]


def test_input_scale_times_weight_scale() -> None:
    assert grids("o = Gemm(x, w, b)") == {"b": BIAS}
    assert grids("o = Gemm(x, w, b)", ONE) == {"b": QNNGrid((2.0,), (0,), 32, signed=True)}


@pytest.mark.parametrize("added", ["p, b", "b, p"])
def test_what_is_added_to_a_product_is_a_bias(added: str) -> None:
    assert grids(f"p = MatMul(x, w) o = Add({added})") == {"b": BIAS}


@pytest.mark.parametrize(
    "nodes",
    [
        "o = Gemm(u, w, b)",  # the input is not quantized
        "o = Gemm(x, y, b)",  # nor the weight
        "o = Gemm(x, w)",
        "o = Gemm(x, w, matrix)",
        "p = MatMul(x, w) o = Add(p, matrix)",
        "p = Abs(x) o = Add(p, b)",
        "o = Sum(x, w, b)",
        "p = Gemm(x, w, b) o = Mul(p, b)",  # used otherwise, too
        "p = Gemm(x, w, b) q = Gemm(y, w, b) o = Add(p, q)",  # with two scales
    ],
)
def test_others_have_none(nodes: str) -> None:
    assert grids(nodes) == {}


def test_a_bias_of_two_layers_on_one_grid_has_it() -> None:
    assert grids("p = Gemm(x, w, b) q = Gemm(x, w, b) o = Add(p, q)") == {"b": BIAS}
