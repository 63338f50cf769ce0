"""Operators between 8 and 16 bits."""

from __future__ import annotations

from typing import Any

import pytest

from lq.export.formats.qnn.mixed import widen_mixed

onnx = pytest.importorskip("onnx")
np = pytest.importorskip("numpy")
pytest.importorskip("onnxruntime")

from tests.export.formats.qnn.applied import session  # noqa: E402 (it imports them)

NUMBERS = (
    "float s = {0.5}, uint8 z = {3}, int8 i = {-5}, float t = {0.003}, uint16 w = {30000}, "
    "float u = {0.4}, uint8 v = {7}"
)
EIGHT, SIGNED, SIXTEEN, OTHER = ("s", "z"), ("s", "i"), ("t", "w"), ("u", "v")


def pair(source: str, made: str, grid: tuple[str, str]) -> str:
    ends = ", ".join(grid)
    return f"{made}_q = QuantizeLinear({source}, {ends}) {made} = DequantizeLinear({made}_q, {ends})"


def model(nodes: str, outputs: str = "float[256] o") -> Any:
    head = f'<ir_version: 10, opset_import: ["" : 21]> g (float[256] x, float[256] y) => ({outputs}) <{NUMBERS}>'
    return onnx.parser.parse_model(f"{head} {{ {nodes} }}")


def both(given: Any) -> tuple[Any, Any]:
    """Outputs before and after, and the graph is valid."""
    random = np.random.default_rng(0)
    feeds = {name: random.uniform(-90, 160, 256).astype(np.float32) for name in ("x", "y")}
    before = session(given.SerializeToString()).run(None, feeds)
    assert widen_mixed(given)
    onnx.checker.check_model(given, full_check=True)
    return before, session(given.SerializeToString()).run(None, feeds)


def bits_of(given: Any) -> list[set[int]]:
    """Of the activations of each operator."""
    sizes = {tensor.name: 8 * onnx.numpy_helper.to_array(tensor).itemsize for tensor in given.graph.initializer}
    pairs = [node for node in given.graph.node if "Linear" in node.op_type]
    written = {node.input[0]: sizes[node.input[2]] for node in pairs if node.op_type == "QuantizeLinear"}
    bits = written | {node.output[0]: sizes[node.input[2]] for node in pairs if node.op_type == "DequantizeLinear"}
    others = [node for node in given.graph.node if node not in pairs]
    return [{bits[name] for name in (*node.input, *node.output) if name in bits} for node in others]


@pytest.mark.parametrize("narrow", [EIGHT, SIGNED])
def test_what_is_read_keeps_its_values(narrow: tuple[str, str]) -> None:
    given = model(f"{pair('x', 'a', narrow)} {pair('y', 'b', SIXTEEN)} c = Add(a, b) {pair('c', 'o', SIXTEEN)}")
    before, after = both(given)
    np.testing.assert_array_equal(before, after)
    assert bits_of(given) == [{16}]


def test_what_is_written_is_a_step_off_next_to_ties_only() -> None:
    given = model(f"{pair('x', 'a', SIXTEEN)} c = Mul(a, a) {pair('c', 'd', OTHER)} o = Neg(d)")
    before, after = both(given)
    steps = np.abs(before[0] - after[0]) / 0.4
    assert steps.max() < 1.5
    assert (steps > 0.5).mean() < 0.02  # two in a thousand are expected
    assert bits_of(given)[0] == {16}


def test_a_tensor_that_two_operators_read_is_widened_once() -> None:
    nodes = f"{pair('x', 'a', EIGHT)} b = Abs(a) {pair('b', 'c', SIXTEEN)} d = Neg(a) {pair('d', 'e', SIXTEEN)}"
    given = model(f"{nodes} o = Add(c, e)")
    before, after = both(given)
    np.testing.assert_array_equal(before, after)
    assert sum(node.op_type == "QuantizeLinear" for node in given.graph.node) == 4
    assert bits_of(given) == [{16}, {16}, {16}]


def test_others_read_what_they_read() -> None:
    nodes = f"{pair('x', 'a', EIGHT)} b = Abs(a) {pair('b', 'c', SIXTEEN)} d = Neg(a) {pair('d', 'e', EIGHT)}"
    given = model(f"{nodes} o = Identity(c)", "float[256] o, float[256] e")
    both(given)
    assert bits_of(given) == [{16}, {8}, {16}]


@pytest.mark.parametrize("grid", [EIGHT, SIXTEEN])
def test_where_all_have_the_same_bits_nothing_changes(grid: tuple[str, str]) -> None:
    given = model(f"{pair('x', 'a', grid)} b = Add(a, y) {pair('b', 'o', grid)}")
    before = given.SerializeToString()
    assert not widen_mixed(given)
    assert given.SerializeToString() == before


def test_weights_and_floats_stay_as_they_are() -> None:
    nodes = f"{pair('x', 'a', SIXTEEN)} d = DequantizeLinear(m, s, i) b = Mul(a, d) c = Neg(b)"
    given = model(f"{nodes} {pair('c', 'h', SIXTEEN)} o = Neg(h)")
    given.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(-128, 128).astype(np.int8), "m"))
    before = given.SerializeToString()
    assert not widen_mixed(given)
    assert given.SerializeToString() == before
