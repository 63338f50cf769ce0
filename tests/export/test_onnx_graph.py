from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lq.export.onnx_graph import tidy

onnx = pytest.importorskip("onnx")


def two_layers() -> Any:
    """A convolution and a linear layer whose weights share their zero points, with the symbol of a program."""
    helper, arrays = onnx.helper, onnx.numpy_helper
    weights = {"block.conv.weight": np.ones((4, 4, 1, 1), np.int8), "head.weight": np.ones((4, 4), np.int8)}
    constants = {"scales": np.ones(4, np.float32), "zeros": np.zeros(4, np.int8), "shape": np.array([-1, 4])}
    nodes = [
        helper.make_node("DequantizeLinear", ["block.conv.weight", "scales", "zeros"], ["w1"], axis=0, name="n1"),
        helper.make_node("Conv", ["x", "w1"], ["y"], name="n2"),
        helper.make_node("Reshape", ["y", "shape"], ["z"], name="n3"),
        helper.make_node("DequantizeLinear", ["head.weight", "scales", "zeros"], ["w2"], axis=0, name="n4"),
        helper.make_node("Transpose", ["w2"], ["w3"], name="n5"),
        helper.make_node("MatMul", ["z", "w3"], ["out"], name="n6"),
    ]
    values = {"x": ["s77", 4, 1, 2], "out": ["2*s77", 4]}
    infos = {name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in values.items()}
    initializers = [arrays.from_array(value, name) for name, value in (weights | constants).items()]
    graph = helper.make_graph(nodes, "g", [infos["x"]], [infos["out"]], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def dimensions(value: Any) -> list[Any]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("dynamic", [True, False])
def test_names_of_layers_and_batch_and_zero_points(dynamic: bool) -> None:
    model = two_layers()
    model.graph.node[0].metadata_props.add(key="namespace", value="of whoever exported it")
    tidy(model, dynamic)
    assert not any(node.metadata_props for node in model.graph.node)
    onnx.checker.check_model(model, full_check=True)
    names = [node.name for node in model.graph.node]
    assert names == ["n1", "block.conv", "n3", "n4", "n5", "head"]
    batch = "batch" if dynamic else "s77"
    assert dimensions(model.graph.input[0]) == [batch, 4, 1, 2]
    assert dimensions(model.graph.output[0]) == [f"2*{batch}", 4]
    stored = {tensor.name for tensor in model.graph.initializer}
    assert {"block.conv.weight_zero_point", "head.weight_zero_point", "shape"} <= stored
    assert "zeros" not in stored
    pairs = [list(node.input) for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert [pair[2] for pair in pairs] == ["block.conv.weight_zero_point", "head.weight_zero_point"]
