"""Operators that read 8 bits and write 16, or the reverse: the NPU has none, and computes them in 16."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lq.export.formats.qnn.grids import QNNGrid, grid_of

_FINER = 256  # steps of 16 bits in one of 8


def widen_mixed(model: Any) -> bool:
    """Give operators whose activations differ in bits 16 for all of them, in place.

    What has 8 bits is quantized to 16 in front of such an operator, which changes no value: a step becomes 256. A
    result of 8 bits is quantized to 16 first, so that one in 500 or fewer, those next to a tie, may be a step off.

    Args:
        model: an ``onnx.ModelProto``: a QDQ graph as :func:`lq.export.formats.onnx.write` writes it.

    Returns:
        whether there was such an operator.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 10, opset_import: ["" : 21]>
        ... g (uint8[2] q) => (uint16[2] y) <float s = {0.5}, uint8 z = {3}, float s16 = {0.1}, uint16 z16 = {0}> {
        ...     x = DequantizeLinear(q, s, z)
        ...     a = Abs(x)
        ...     y = QuantizeLinear(a, s16, z16)
        ... }''')
        >>> widen_mixed(model)
        True
        >>> [node.op_type for node in model.graph.node]
        ['DequantizeLinear', 'QuantizeLinear', 'DequantizeLinear', 'Abs', 'QuantizeLinear']
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    takers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    nodes: list[Any] = []
    wide: dict[str, str] = {}
    for node in graph.node:
        ends = {} if node.op_type in ("QuantizeLinear", "DequantizeLinear") else _ends(node, makers, takers, constants)
        mixed = len({grid.bits for _, grid in ends.values()}) > 1
        narrow = {name: end for name, end in ends.items() if mixed and end[1].bits == 8}
        before: list[Any] = []
        after: list[Any] = []
        for name, (quantize, grid) in narrow.items():
            if name not in wide:
                (after if quantize is not None else before).extend(_pair(graph, name, grid))
                wide[name] = f"{name}.wide"
            if quantize is not None:
                quantize.input[0] = wide[name]
        node.input[:] = [wide[name] if name in narrow else name for name in node.input]
        nodes += [*before, node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return bool(wide)


def _ends(
    node: Any, makers: Mapping[str, Any], takers: Mapping[str, list[Any]], constants: Mapping[str, Any]
) -> dict[str, tuple[Any, QNNGrid]]:
    """The activations that a node reads and writes on a grid; with the QuantizeLinear of those that it writes."""
    found: dict[str, tuple[Any, QNNGrid]] = {}
    for name in node.input:
        maker = makers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear" and maker.input[0] not in constants:
            found[name] = None, grid_of(maker, constants)
    for name in node.output:
        for taker in takers.get(name, []):
            if taker.op_type == "QuantizeLinear":
                found[name] = taker, grid_of(taker, constants)
    return found


def _pair(graph: Any, name: str, grid: QNNGrid) -> Iterator[Any]:
    """A tensor of 8 bits, quantized to 16."""
    import numpy as np
    from onnx import helper, numpy_helper

    scale, zero = f"{name}.wide_scale", f"{name}.wide_zero_point"
    integer = _FINER * (grid.zero_point[0] - grid.lowest)
    graph.initializer.append(numpy_helper.from_array(np.array(grid.scale[0] / _FINER, np.float32), scale))
    graph.initializer.append(numpy_helper.from_array(np.array(integer, np.uint16), zero))
    quantized, out = f"{name}.wide_quantized", f"{name}.wide"
    yield helper.make_node("QuantizeLinear", [name, scale, zero], [quantized], quantized)
    yield helper.make_node("DequantizeLinear", [quantized, scale, zero], [out], out)
