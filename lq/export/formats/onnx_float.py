"""Layers that were left in float, which ONNX Runtime would quantize by itself."""

from __future__ import annotations

from typing import Any

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def keep_float_layers(model: Any) -> None:
    """Put an operation that changes nothing in front of layers with float weights that read integers, in place.

    ONNX Runtime 1.32 rounds the weights of a layer between a DequantizeLinear and a QuantizeLinear to int8, with one
    scale for all channels, though it was excluded from quantization and trained in float. The maximum of one tensor,
    which no runtime takes away, is no DequantizeLinear.

    Args:
        model: an ``onnx.ModelProto``: a QDQ graph as :func:`.onnx_graph.tidy` leaves it.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 20]>
        ... g (uint8[1,2] q) => (float[1,1] y) <float s = {0.5}, uint8 z = {3}, float[2,1] w = {1, 2}> {
        ...     x = DequantizeLinear(q, s, z)
        ...     y = MatMul(x, w)
        ... }''')
        >>> keep_float_layers(model)
        >>> [(node.op_type, *node.input) for node in model.graph.node]
        [('DequantizeLinear', 'q', 's', 'z'), ('Max', 'x'), ('MatMul', 'x_float', 'w')]
    """
    from onnx import TensorProto, helper

    graph = model.graph
    numbers = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    guards: dict[str, str] = {}
    for layer in [node for node in graph.node if node.op_type in _LAYERS]:
        read = [place for place in (0, 1) if layer.input[place] in dequantized]
        if len(read) != 1 or layer.input[1 - read[0]] not in numbers:
            continue
        given = layer.input[read[0]]
        if given not in guards:
            guards[given] = f"{given}_float"
            guard = helper.make_node("Max", [given], [guards[given]], guards[given])
            graph.node.insert(list(graph.node).index(layer), guard)
        layer.input[read[0]] = guards[given]
