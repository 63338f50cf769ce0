from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lq.export.formats.onnx_graph import align_channels, clip_integers, tidy

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


def test_names_of_layers_and_batch_and_zero_points() -> None:
    model = two_layers()
    model.graph.node[0].metadata_props.add(key="namespace", value="of whoever exported it")
    tidy(model)
    assert not any(node.metadata_props for node in model.graph.node)
    onnx.checker.check_model(model, full_check=True)
    names = [node.name for node in model.graph.node]
    assert names == ["n1", "block.conv", "n3", "n4", "n5", "head"]
    assert dimensions(model.graph.input[0]) == ["batch", 4, 1, 2]
    assert dimensions(model.graph.output[0]) == ["2*batch", 4]
    stored = {tensor.name for tensor in model.graph.initializer}
    assert {"block.conv.weight_zero_point", "head.weight_zero_point", "shape"} <= stored
    assert "zeros" not in stored
    pairs = [list(node.input) for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert [pair[2] for pair in pairs] == ["block.conv.weight_zero_point", "head.weight_zero_point"]


def test_sizes_that_are_no_batch_are_named_after_their_inputs() -> None:
    model = two_layers()
    for name, size in (("y", "s7"), ("z", "s77"), ("table", 3)):
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [size, 2]))
    del model.graph.output[0].type.tensor_type.shape.dim[1:]
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "s7 + 2*s77"
    tidy(model)
    assert [dimensions(value)[0] for value in model.graph.input] == ["x_size", "y_size", "x_size", 3]
    assert dimensions(model.graph.output[0]) == ["y_size + 2*x_size"]


def test_a_weight_that_is_read_twice_has_one_zero_point() -> None:
    model = two_layers()
    first = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    again = onnx.NodeProto()
    again.CopyFrom(first)
    again.output[0] = "again"
    model.graph.node.insert(1, again)
    tidy(model)
    names = [tensor.name for tensor in model.graph.initializer]
    assert sorted(names) == sorted(set(names))
    assert [list(node.input)[2] for node in model.graph.node if node.op_type == "DequantizeLinear"][:2] == [
        "block.conv.weight_zero_point"
    ] * 2


def means(axes: list[int], keepdims: int) -> Any:
    """The mean of a sum, over some of its four dimensions."""
    helper, arrays = onnx.helper, onnx.numpy_helper
    nodes = [
        helper.make_node("Add", ["x", "x"], ["sum"]),
        helper.make_node("ReduceMean", ["sum", "axes"], ["out"], "pool", keepdims=keepdims),
    ]
    infos = {
        "x": helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 3, 4, 5]),
        "out": helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None),
    }
    graph = helper.make_graph(nodes, "g", [infos["x"]], [infos["out"]], [arrays.from_array(np.array(axes), "axes")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize(
    ("axes", "keepdims", "kind"),
    [
        ([-1, -2], 1, "GlobalAveragePool"),
        ([2, 3], 1, "GlobalAveragePool"),
        ([2, 3], 0, "ReduceMean"),
        ([3], 1, "ReduceMean"),
        ([1, 2], 1, "ReduceMean"),
    ],
)
def test_means_of_images_are_pooled(axes: list[int], keepdims: int, kind: str) -> None:
    model = means(axes, keepdims)
    expected = outputs_of(model)
    tidy(model)
    onnx.checker.check_model(model, full_check=True)
    assert (model.graph.node[1].op_type, model.graph.node[1].name) == (kind, "pool")
    assert [tensor.name for tensor in model.graph.initializer] == (["axes"] if kind == "ReduceMean" else [])
    np.testing.assert_allclose(outputs_of(model)[0], expected[0], rtol=1e-5, atol=1e-6)


def first_layers(channels: int = 3, outputs: int = 16, kernel: int = 3, groups: int = 1) -> Any:
    """Two convolutions of one quantized input, the second a pointwise one."""
    helper, arrays = onnx.helper, onnx.numpy_helper
    numbers = np.random.default_rng(0)
    weights = {
        "stem.weight": numbers.integers(-127, 128, (outputs, channels // groups, kernel, kernel), np.int8),
        "side.weight": numbers.integers(-127, 128, (16, channels, 1, 1), np.int8),
    }
    constants = {"scale": np.float32(0.02), "zero": np.uint8(114), "weight_scale": np.float32(0.01), "none": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["input"]),
        helper.make_node("DequantizeLinear", ["stem.weight", "weight_scale", "none"], ["w1"]),
        helper.make_node("Conv", ["input", "w1"], ["stem_out"], "stem", group=groups, pads=[kernel // 2] * 4),
        helper.make_node("DequantizeLinear", ["side.weight", "weight_scale", "none"], ["w2"]),
        helper.make_node("Conv", ["input", "w2"], ["side_out"], "side"),
    ]
    shapes = {"x": [2, channels, 9, 9], "stem_out": [2, outputs, 9, 9], "side_out": [2, 16, 9, 9]}
    infos = {name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    initializers = [arrays.from_array(np.asarray(value), name) for name, value in (weights | constants).items()]
    graph = helper.make_graph(nodes, "g", [infos["x"]], [infos["stem_out"], infos["side_out"]], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def shapes_of_weights(model: Any) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer if t.name.endswith(".weight")}


def outputs_of(model: Any) -> list[np.ndarray]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    found: list[np.ndarray] = session.run(None, {"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)})
    return found


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 6, 7])
def test_first_layers_get_channels_in_fours_and_the_same_outputs(channels: int) -> None:
    model = first_layers(channels)
    expected = outputs_of(model)
    align_channels(model)
    onnx.checker.check_model(model, full_check=True)
    fours = 4 if channels < 4 else 8
    assert shapes_of_weights(model) == {"stem.weight": (16, fours, 3, 3), "side.weight": (16, fours, 1, 1)}
    assert [node.op_type for node in model.graph.node].count("Pad") == 2
    made = {name for node in model.graph.node for name in node.output}
    assert "input" not in made, "nothing takes it any more"
    assert all(np.array_equal(a, b) for a, b in zip(expected, outputs_of(model), strict=True))


@pytest.mark.parametrize(
    "left", [{"channels": 4}, {"channels": 58}, {"channels": 6, "groups": 2}, {"outputs": 8}, {"kernel": 7}], ids=str
)
def test_layers_that_would_not_gain_stay(left: dict[str, int]) -> None:
    model = first_layers(**left)
    before = shapes_of_weights(model)["stem.weight"]
    align_channels(model)
    assert shapes_of_weights(model)["stem.weight"] == before
    assert model.graph.node[3].input[0] == "input" or model.graph.node[2].input[0] == "input"
    onnx.checker.check_model(model, full_check=True)


def test_a_layer_that_is_called_twice_stays() -> None:
    model = first_layers()
    model.graph.node[5].input[1] = "w1"
    align_channels(model)
    assert shapes_of_weights(model)["stem.weight"] == (16, 3, 3, 3)


def test_a_zero_point_may_be_left_out() -> None:
    model = first_layers()
    del model.graph.node[0].input[2], model.graph.node[1].input[2]
    expected = outputs_of(model)
    align_channels(model)
    onnx.checker.check_model(model, full_check=True)
    assert shapes_of_weights(model)["stem.weight"] == (16, 4, 3, 3)
    assert all(np.array_equal(a, b) for a, b in zip(expected, outputs_of(model), strict=True))


def test_outputs_get_their_names_unless_these_are_taken() -> None:
    for wanted, expected in (("logits", "logits"), ("x", "x_1"), ("w1", "w1_1")):
        model = two_layers()
        tidy(model, [wanted])
        onnx.checker.check_model(model, full_check=True)
        assert [value.name for value in model.graph.output] == [expected]
        assert model.graph.node[-1].output[0] == expected
    unchanged = two_layers()
    tidy(unchanged, ["one", "too many"])
    assert unchanged.graph.output[0].name == "out"


def clipped(low: float, high: float) -> Any:
    """A convolution whose output is clipped to [low, high] and quantized with a scale of 0.1 and the zero point 3."""
    model = first_layers()
    helper, arrays = onnx.helper, onnx.numpy_helper
    numbers = {"low": low, "high": high, "step": 0.1}
    for name, value in numbers.items():
        model.graph.initializer.append(arrays.from_array(np.array(value, np.float32), name))
    model.graph.initializer.append(arrays.from_array(np.array(3, np.uint8), "three"))
    model.graph.node.extend(
        [
            helper.make_node("Clip", ["stem_out", "low", "high"], ["inside"]),
            helper.make_node("QuantizeLinear", ["inside", "step", "three"], ["small"]),
            helper.make_node("DequantizeLinear", ["small", "step", "three"], ["y"]),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 16, 9, 9]))
    return model


@pytest.mark.parametrize("ends", [(-0.3, 1.2), (-0.32, 1.17), (-0.2, 30.0), (-5.0, 0.25)], ids=str)
def test_what_is_clipped_before_it_is_quantized_is_clipped_as_integers(ends: tuple[float, float]) -> None:
    model = clipped(*ends)
    expected = outputs_of(model)
    assert len(np.unique(expected[-1])) > 3
    clip_integers(model)
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds[-3:] == ["QuantizeLinear", "Clip", "DequantizeLinear"]
    assert kinds.count("Clip") == 1
    assert "low" not in {tensor.name for tensor in model.graph.initializer}
    assert all(np.array_equal(a, b) for a, b in zip(expected, outputs_of(model), strict=True))


def test_a_clip_that_the_integer_type_makes_useless_stays() -> None:
    model = clipped(-0.3, 30.0)
    clip_integers(model)
    assert [node.op_type for node in model.graph.node][-3:] == ["Clip", "QuantizeLinear", "DequantizeLinear"]


def test_a_clip_that_something_else_reads_stays_for_that() -> None:
    model = clipped(-0.3, 1.2)
    model.graph.output.append(onnx.helper.make_tensor_value_info("inside", onnx.TensorProto.FLOAT, [2, 16, 9, 9]))
    expected = outputs_of(model)
    clip_integers(model)
    assert [node.op_type for node in model.graph.node].count("Clip") == 2
    assert all(np.array_equal(a, b) for a, b in zip(expected, outputs_of(model), strict=True))


@pytest.mark.parametrize("kept", ["low", "high"])
def test_a_clip_of_one_end_is_clipped_as_integers_too(kept: str) -> None:
    model = clipped(-0.2, 1.2)
    (clip,) = (node for node in model.graph.node if node.op_type == "Clip")
    clip.input[1:] = [kept] if kept == "low" else ["", kept]
    (unused,) = (tensor for tensor in model.graph.initializer if tensor.name in {"low", "high"} - {kept})
    model.graph.initializer.remove(unused)
    expected = outputs_of(model)
    clip_integers(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node][-3:] == ["QuantizeLinear", "Clip", "DequantizeLinear"]
    assert all(np.array_equal(a, b) for a, b in zip(expected, outputs_of(model), strict=True))
