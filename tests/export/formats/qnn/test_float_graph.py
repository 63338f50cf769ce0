"""QDQ graphs, written by hand, without their pairs."""

from __future__ import annotations

from typing import Any

import pytest

from lq.export.formats.qnn.float_graph import FloatModel, without_pairs

onnx = pytest.importorskip("onnx")
np = pytest.importorskip("numpy")

NUMBERS = "float s = {0.5}, float t = {0.25}, uint8 z = {3}, uint8 zero = {0}, int8 low = {-128}"


def stripped(ends: str, nodes: str, constants: str = "") -> FloatModel:
    head = f'<ir_version: 8, opset_import: ["" : 20]> g {ends} <{NUMBERS}{constants}>'
    model = onnx.parser.parse_model(f"{head} {{ {nodes} }}")
    before = model.SerializeToString()
    found = without_pairs(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(found.model, full_check=True)
    return found


def nodes(found: FloatModel) -> list[tuple[Any, ...]]:
    return [(node.op_type, *node.input, "->", *node.output) for node in found.model.graph.node]


def constant(found: FloatModel, name: str) -> Any:
    return next(onnx.numpy_helper.to_array(t) for t in found.model.graph.initializer if t.name == name)


def pair(source: str, made: str, scale: str = "s", zero: str = "z") -> str:
    quantized = f"{made}_q = QuantizeLinear({source}, {scale}, {zero})"
    return f"{quantized} {made} = DequantizeLinear({made}_q, {scale}, {zero})"


def test_scales_and_zero_points_are_no_longer_stored() -> None:
    found = stripped("(float[2] x) => (float[2] y)", f"{pair('x', 'd')} y = Abs(d)")
    assert nodes(found) == [("Abs", "x", "->", "y")]
    assert list(found.model.graph.initializer) == []


def test_a_tensor_that_is_used_without_its_grid_too_gets_an_identity() -> None:
    found = stripped("(float[2] x) => (float[2] y)", f"a = Abs(x) {pair('a', 'd')} y = Mul(a, d)")
    assert nodes(found)[1:] == [("Identity", "a", "->", "a_identity"), ("Mul", "a", "a_identity", "->", "y")]
    assert list(found.activations) == ["a_identity"]


def test_a_tensor_with_two_grids_gets_an_identity_for_each() -> None:
    found = stripped("(float[2] x) => (float[2] y)", f"{pair('x', 'd')} {pair('x', 'e', 't')} y = Mul(d, e)")
    assert nodes(found)[-1] == ("Mul", "x_identity", "x_identity_1", "->", "y")
    assert {name: grid.scale for name, grid in found.activations.items()} == {
        "x_identity": (0.5,),
        "x_identity_1": (0.25,),
    }


def test_one_grid_that_is_written_twice_is_one() -> None:
    found = stripped("(float[2] x) => (float[2] y)", f"{pair('x', 'd')} {pair('x', 'e')} y = Mul(d, e)")
    assert nodes(found) == [("Mul", "x", "x", "->", "y")]


def test_a_pair_behind_a_pair_is_the_same_or_an_identity() -> None:
    again = stripped("(float[2] x) => (float[2] y)", f"{pair('x', 'd')} {pair('d', 'e')} y = Abs(e)")
    assert (nodes(again), list(again.activations)) == ([("Abs", "x", "->", "y")], ["x"])
    other = stripped("(float[2] x) => (float[2] y)", f"{pair('x', 'd')} {pair('d', 'e', 't')} y = Abs(e)")
    assert nodes(other) == [("Identity", "x", "->", "x_identity"), ("Abs", "x_identity", "->", "y")]
    assert {name: grid.scale for name, grid in other.activations.items()} == {"x": (0.5,), "x_identity": (0.25,)}


def test_a_pair_behind_a_relu_that_came_back_is_the_same() -> None:
    made = f"a = Add(x, x) {pair('a', 'd', 's', 'zero')} {pair('d', 'e', 's', 'zero')} y = Abs(e)"
    found = stripped("(float[2] x) => (float[2] y)", made)
    assert nodes(found)[1:] == [("Relu", "a", "->", "a_relu"), ("Abs", "a_relu", "->", "y")]
    assert list(found.activations) == ["a_relu"]


def test_another_grid_behind_a_relu_that_came_back_gets_an_identity() -> None:
    made = f"a = Add(x, x) {pair('a', 'd', 's', 'zero')} {pair('d', 'e', 't')} y = Abs(e)"
    found = stripped("(float[2] x) => (float[2] y)", made)
    assert nodes(found)[2:] == [("Identity", "a_relu", "->", "a_relu_identity"), ("Abs", "a_relu_identity", "->", "y")]
    assert {name: grid.scale for name, grid in found.activations.items()} == {
        "a_relu": (0.5,),
        "a_relu_identity": (0.25,),
    }


def test_an_output_that_has_a_grid_keeps_its_name() -> None:
    found = stripped("(float[2] x) => (float[2] y, float[2] z_)", f"a = Abs(x) {pair('a', 'y')} z_ = Neg(y)")
    assert nodes(found) == [("Abs", "x", "->", "y"), ("Neg", "y", "->", "z_")]
    assert list(found.activations) == ["y"]


def test_outputs_that_are_one_tensor_or_an_input_get_an_identity() -> None:
    both = "a = Abs(x) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z) w = DequantizeLinear(q, s, z)"
    found = stripped("(float[2] x) => (float[2] y, float[2] w)", both)
    assert nodes(found) == [("Abs", "x", "->", "y"), ("Identity", "y", "->", "w")]
    returned = stripped("(float[2] x) => (float[2] y)", pair("x", "y"))
    assert (nodes(returned), list(returned.activations)) == ([("Identity", "x", "->", "y")], ["x"])


def test_outputs_of_every_kind_keep_their_names() -> None:
    both = "a = Abs(v) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z) w = DequantizeLinear(q, s, z)"
    found = stripped(
        "(float[2] x) => (float[2] v, float[2] y, float[2] w, float[2] u)",
        f"{pair('x', 'v')} {both} b = Neg(y) {pair('b', 'u', 't')}",
    )
    assert nodes(found) == [
        ("Abs", "x", "->", "y"),
        ("Neg", "y", "->", "u"),
        ("Identity", "x", "->", "v"),
        ("Identity", "y", "->", "w"),
    ]
    assert {name: grid.scale for name, grid in found.activations.items()} == {"x": (0.5,), "y": (0.5,), "u": (0.25,)}


def test_an_output_in_front_of_a_pair_has_no_grid() -> None:
    found = stripped("(float[2] x) => (float[2] a, float[2] y)", f"a = Abs(x) {pair('a', 'd')} y = Neg(d)")
    assert nodes(found)[1:] == [("Identity", "a", "->", "a_identity"), ("Neg", "a_identity", "->", "y")]
    assert list(found.activations) == ["a_identity"]


@pytest.mark.parametrize(("kind", "zero", "comes"), [("Add", "zero", 1), ("Add", "z", 0), ("Max", "zero", 0)])
def test_a_relu_comes_back_where_a_grid_that_begins_at_zero_may_have_taken_it(kind: str, zero: str, comes: int) -> None:
    found = stripped("(float[2] x) => (float[2] y)", f"a = {kind}(x, x) {pair('a', 'd', 's', zero)} y = Abs(d)")
    assert [node[0] for node in nodes(found)] == [kind, *["Relu"] * comes, "Abs"]
    assert list(found.activations) == ["a_relu" if comes else "a"]


def test_a_relu_comes_back_in_front_of_signed_integers_and_of_an_output() -> None:
    found = stripped("(float[2] x) => (float[2] y)", f"a = Sub(x, x) {pair('a', 'y', 's', 'low')}")
    assert nodes(found) == [("Sub", "x", "x", "->", "a"), ("Relu", "a", "->", "y")]


WEIGHT = ", int8[2,3] w = {1, 2, 3, -4, -5, -6}, float[2] ws = {0.5, 2.0}, int8[2] wz = {0, 1}"


@pytest.mark.parametrize("order", ["", "<perm = [1, 0]>"])
def test_a_transposed_weight_is_stored_transposed(order: str) -> None:
    made = f"d = DequantizeLinear<axis = 0>(w, ws, wz) t_ = Transpose{order}(d) y = MatMul(x, t_)"
    found = stripped("(float[1,3] x) => (float[1,2] y)", made, WEIGHT)
    assert nodes(found) == [("MatMul", "x", "w", "->", "y")]
    np.testing.assert_array_equal(constant(found, "w"), np.array([[0.5, -10], [1, -12], [1.5, -14]], np.float32))
    assert (found.parameters["w"].axis, found.parameters["w"].scale) == (1, (0.5, 2.0))


def test_channels_go_where_the_transpose_puts_them() -> None:
    made = "d = DequantizeLinear<axis = 1>(v, ws, wz) t_ = Transpose<perm = [1, 2, 0]>(d) y = Mul(x, t_)"
    constants = ", int8[1,2,3] v = {1, 2, 3, -4, -5, -6}, float[2] ws = {0.5, 2.0}, int8[2] wz = {0, 1}"
    found = stripped("(float[2,3,1] x) => (float[2,3,1] y)", made, constants)
    assert constant(found, "v").tolist() == [[[0.5], [1.0], [1.5]], [[-10.0], [-12.0], [-14.0]]]
    assert found.parameters["v"].axis == 0


def test_a_weight_with_one_scale_has_no_axis() -> None:
    made = "d = DequantizeLinear(w, s, low) t_ = Transpose(d) y = MatMul(x, t_)"
    found = stripped("(float[1,3] x) => (float[1,2] y)", made, WEIGHT)
    assert (constant(found, "w").shape, found.parameters["w"].axis) == ((3, 2), None)


def test_a_weight_that_is_used_both_ways_keeps_its_order() -> None:
    made = "d = DequantizeLinear<axis = 0>(w, ws, wz) t_ = Transpose(d) a = MatMul(x, t_) y = MatMul(a, d)"
    found = stripped("(float[1,3] x) => (float[1,3] y)", made, WEIGHT)
    assert nodes(found)[:2] == [("Transpose", "w", "->", "t_"), ("MatMul", "x", "t_", "->", "a")]
    assert (constant(found, "w").shape, found.parameters["w"].axis) == ((2, 3), 0)


def test_a_weight_that_is_an_output_keeps_its_order() -> None:
    made = "d = DequantizeLinear<axis = 0>(w, ws, wz) t_ = Transpose(d) y = MatMul(x, t_)"
    found = stripped("(float[1,3] x) => (float[1,2] y, float[2,3] d)", made, WEIGHT)
    assert nodes(found) == [
        ("Transpose", "w", "->", "t_"),
        ("MatMul", "x", "t_", "->", "y"),
        ("Identity", "w", "->", "d"),
    ]


def test_integers_with_two_scales_are_two_weights() -> None:
    made = "d = DequantizeLinear(w, s, low) e = DequantizeLinear(w, t, low) a = Mul(x, d) y = Mul(a, e)"
    found = stripped("(float[2] x) => (float[2] y)", made, ", int8[2] w = {-127, -126}")
    assert nodes(found) == [("Mul", "x", "w", "->", "a"), ("Mul", "a", "w_1", "->", "y")]
    assert constant(found, "w").tolist() == [0.5, 1.0]
    assert constant(found, "w_1").tolist() == [0.25, 0.5]
    assert {name: grid.scale for name, grid in found.parameters.items()} == {"w": (0.5,), "w_1": (0.25,)}
