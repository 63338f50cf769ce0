"""Clips of activations of few bits."""

from __future__ import annotations

from typing import Any

import pytest

from lq.export.formats.qnn.clips import quantize_before_clips

onnx = pytest.importorskip("onnx")
np = pytest.importorskip("numpy")
pytest.importorskip("onnxruntime")

from tests.export.formats.qnn.applied import session  # noqa: E402 (it imports them)

NUMBERS = "float low = {-1.5}, float high = {6.0}, float s = {0.5}, uint8 z = {3}"
PAIR = "q = QuantizeLinear(c, s, z) o = DequantizeLinear(q, s, z)"


def model(nodes: str) -> Any:
    head = f'<ir_version: 10, opset_import: ["" : 21]> g (float[256] x) => (float[256] o) <{NUMBERS}>'
    return onnx.parser.parse_model(f"{head} {{ {nodes} }}")


def output_of(given: Any) -> Any:
    x = np.random.default_rng(0).uniform(-9, 16, 256).astype(np.float32)
    return session(given.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize("source", ["c = Clip(x, low, high)", "n = Neg(x) c = Clip(n, low, high)"])
def test_what_is_clipped_is_on_integers_with_the_same_values(source: str) -> None:
    given = model(f"{source} {PAIR}")
    before = output_of(given)
    assert quantize_before_clips(given)
    onnx.checker.check_model(given, full_check=True)
    pair = ["QuantizeLinear", "DequantizeLinear"]
    assert [node.op_type for node in given.graph.node][-5:] == [*pair, "Clip", *pair]
    np.testing.assert_array_equal(before, output_of(given))


@pytest.mark.parametrize("nodes", [f"c = Neg(x) {PAIR}", "n = Clip(x, low, high) o = Neg(n)"])
def test_other_graphs_stay(nodes: str) -> None:
    given = model(nodes)
    before = given.SerializeToString()
    assert not quantize_before_clips(given)
    assert given.SerializeToString() == before
