"""Activations of few bits: what is clipped before it is quantized, on integers."""

from __future__ import annotations

from typing import Any


def quantize_before_clips(model: Any) -> bool:
    """Quantize what a Clip in front of a QuantizeLinear reads, to the same grid, in place.

    Activations of few bits are clipped to less than their integer type holds. The NPU takes a layer only with its
    quantization behind it, and the Clip then is an operator of its own on integers. No value changes: rounding keeps
    the order of numbers.

    Args:
        model: an ``onnx.ModelProto``: a QDQ graph as :func:`lq.export.formats.onnx.write` writes it.

    Returns:
        whether there was such a Clip.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 20]>
        ... g (float[2] x) => (uint8[2] q) <float s = {0.5}, uint8 z = {0}, float low = {0}, float high = {7.5}> {
        ...     clipped = Clip(x, low, high)
        ...     q = QuantizeLinear(clipped, s, z)
        ... }''')
        >>> quantize_before_clips(model), quantize_before_clips(model)
        (True, False)
        >>> [node.op_type for node in model.graph.node]
        ['QuantizeLinear', 'DequantizeLinear', 'Clip', 'QuantizeLinear']
    """
    from onnx import helper

    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    nodes: list[Any] = []
    grids = {node.input[0]: node.input[1:] for node in graph.node if node.op_type == "QuantizeLinear"}
    for node in graph.node:
        source = makers.get(node.input[0]) if node.input else None
        grid = grids.get(node.output[0]) if node.op_type == "Clip" else None
        if grid is not None and (source is None or source.op_type != "DequantizeLinear"):
            quantized, out = f"{node.output[0]}.input_quantized", f"{node.output[0]}.input"
            nodes.append(helper.make_node("QuantizeLinear", [node.input[0], *grid], [quantized], quantized))
            nodes.append(helper.make_node("DequantizeLinear", [quantized, *grid], [out], out))
            node.input[0] = out
        nodes.append(node)
    changed = len(nodes) > len(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    return changed
