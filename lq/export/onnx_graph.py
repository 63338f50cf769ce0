"""What is left to do to the graph that torch.onnx writes: names, and a zero point for every weight."""

from __future__ import annotations

from itertools import chain, count
from typing import Any

from lq.export.program import BATCH


def tidy(model: Any, dynamic: bool) -> None:
    """Make a QDQ graph, in place, one that people and runtimes can read.

    Nodes of layers get the names of their modules, and the batch dimension its own; what the exporter notes of each
    node's origin goes, a quarter of the file of a small network. Every weight gets a zero point of
    its own: layers that share one are computed in float by OpenVINO 2026.4.

    Args:
        model: an ``onnx.ModelProto`` whose weights are initializers with names ending in ".weight".
        dynamic: whether the first dimension of its inputs is a symbol.
    """
    _name_layers(model)
    _own_zero_points(model)
    if dynamic:
        _name_batch(model)
    for node in model.graph.node:
        del node.metadata_props[:]


def _name_layers(model: Any) -> None:
    holders: dict[str, str] = {}
    taken = {name for node in model.graph.node if (name := node.name)}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0].endswith(".weight"):
            holders[node.output[0]] = node.input[0].removesuffix(".weight")
        elif node.op_type == "Transpose" and node.input[0] in holders:
            holders[node.output[0]] = holders[node.input[0]]
        elif len(node.input) > 1 and node.input[1] in holders:
            layer, calls = holders[node.input[1]], count(1)
            # ONNX Runtime refuses two nodes of one name; a layer may be called more than once.
            node.name = next(n for n in chain([layer], (f"{layer}_{i}" for i in calls)) if n not in taken)
            taken.add(node.name)


def _own_zero_points(model: Any) -> None:
    import onnx

    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    shared = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0].endswith(".weight") and node.input[2] in initializers:
            own = onnx.TensorProto()
            own.CopyFrom(initializers[node.input[2]])
            own.name = f"{node.input[0]}_zero_point"
            model.graph.initializer.append(own)
            shared.add(node.input[2])
            node.input[2] = own.name
    for name in shared - {name for node in model.graph.node for name in node.input}:
        model.graph.initializer.remove(initializers[name])


def _name_batch(model: Any) -> None:
    # torch.onnx takes the symbol that a finished program has for its dimension.
    graph = model.graph
    shapes = [value.type.tensor_type.shape for value in (*graph.input, *graph.output, *graph.value_info)]
    symbol = next(shape.dim[0].dim_param for shape in shapes if shape.dim and shape.dim[0].dim_param)
    for shape in shapes:
        for dimension in shape.dim:
            if dimension.dim_param:
                dimension.dim_param = dimension.dim_param.replace(symbol, BATCH)
