"""A QDQ graph without its pairs: a float graph, and the grid on which each of its tensors was trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from lq.export.formats.qnn.grids import QNNGrid, bias_grids, grid_of
from lq.tracing.names import free_name

# Behind them there may have been a ReLU, of which a QDQ graph keeps a grid that begins at 0.
_OF_BOTH_SIGNS = {"Add", "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", "Mul", "Sub"}


@dataclass(frozen=True)
class FloatModel:
    """A float graph and its grids.

    Args:
        model: an ``onnx.ModelProto``.
        activations: grid by the name of a tensor.
        parameters: grid by the name of a weight or bias.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 20]>
        ... g (float[1,1] x) => (float[1,1] y) <int8[1,1] w = {6}, float s = {0.5}, int8 z = {0}> {
        ...     weight = DequantizeLinear(w, s, z)
        ...     y = MatMul(x, weight)
        ... }''')
        >>> found = without_pairs(model)
        >>> [(tensor.name, onnx.numpy_helper.to_array(tensor).tolist()) for tensor in found.model.graph.initializer]
        [('w', [[3.0]])]
        >>> list(found.activations), list(found.parameters)
        ([], ['w'])
    """

    model: Any
    activations: dict[str, QNNGrid]
    parameters: dict[str, QNNGrid]


def without_pairs(model: Any) -> FloatModel:
    """Take the QuantizeLinear and DequantizeLinear nodes out of a QDQ graph.

    A weight keeps its name, and has the values that its integers stand for; a Transpose between it and its layer is
    done. A ReLU or ReLU6 that saturation at 0 had replaced is a Relu again. A tensor that is used with and without its
    grid, or with two grids, gets an Identity for each grid. Inputs and outputs keep their names.

    Args:
        model: an ``onnx.ModelProto`` as :func:`lq.export.formats.onnx.write` writes it; it is left as it is.

    Returns:
        the float graph, and the grid of each tensor that had a pair and of each bias that is added to integers.

    Example:
        >>> import onnx
        >>> graph = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 20]> g (float[2] x) => (float[2] y)
        ... <float s = {0.5}, uint8 z = {3}> {
        ...     q = QuantizeLinear(x, s, z)
        ...     dq = DequantizeLinear(q, s, z)
        ...     y = Abs(dq)
        ... }''')
        >>> found = without_pairs(graph)
        >>> [(node.op_type, *node.input) for node in found.model.graph.node]
        [('Abs', 'x')]
        >>> found.activations
        {'x': QNNGrid(scale=(0.5,), zero_point=(3,), bits=8, signed=False, axis=None)}
    """
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    stripping = _Stripping(graph)
    nodes = list(chain.from_iterable(map(stripping.replaced, graph.node)))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    stripping.restore_outputs()
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used - set(stripping.stored)]
    tensors = [*kept, *stripping.stored.values()]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    activations, weights = stripping.activations, stripping.weights
    return FloatModel(copied, activations, weights | bias_grids(graph, activations, weights))


class _Stripping:
    """One pass over the nodes of a graph, in their order.

    Args:
        graph: an ``onnx.GraphProto``.
    """

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node.op_type for node in graph.node for name in node.output}
        self.inputs, self.outputs = ([value.name for value in values] for values in (graph.input, graph.output))
        self.taken = {*self.makers, *self.constants, *self.inputs}
        self.takers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)
        self.activations: dict[str, QNNGrid] = {}
        self.weights: dict[str, QNNGrid] = {}
        self.stored: dict[str, Any] = {}  # weights in float
        self.stand_ins: dict[str, str] = {}  # for integers, and for tensors that are gone
        self.placed: dict[tuple[str, QNNGrid], str] = {}  # where a tensor has a grid

    def replaced(self, node: Any) -> Iterator[Any]:
        """What comes in the place of a node."""
        if node.op_type == "QuantizeLinear":
            yield from self._give_grid(node)
        elif node.op_type != "DequantizeLinear":
            if node.output[0] not in self.stand_ins:  # a Transpose that is done
                node.input[:] = [self.stand_ins.get(name, name) for name in node.input]
                yield node
        elif node.input[0] in self.constants:
            self._store(node)
        else:
            self.stand_ins[node.output[0]] = self.stand_ins[node.input[0]]

    def _store(self, node: Any) -> None:
        """A weight in float, under the name of its integers."""
        import numpy as np
        from onnx import numpy_helper

        integers, grid = numpy_helper.to_array(self.constants[node.input[0]]), grid_of(node, self.constants)
        shape = [-1 if axis == grid.axis else 1 for axis in range(integers.ndim)]
        scale, zero = (np.array(given, np.float32).reshape(shape) for given in (grid.scale, grid.zero_point))
        values, gone = (integers.astype(np.float32) - zero) * scale, [node.output[0]]
        takers = self.takers.get(node.output[0], [])
        orders = {_order(taker, integers.ndim) for taker in takers}
        if len(orders) == 1 and (order := orders.pop()) and node.output[0] not in self.outputs:
            values, gone = np.ascontiguousarray(values.transpose(order)), [taker.output[0] for taker in takers]
            grid = grid if grid.axis is None else replace(grid, axis=order.index(grid.axis))
        # The same integers may be there for another layer, too, with another scale.
        name = self._unused(node.input[0]) if node.input[0] in self.stored else node.input[0]
        self.stored[name], self.weights[name] = numpy_helper.from_array(values, name), grid
        self.stand_ins.update(dict.fromkeys(gone, name))

    def _give_grid(self, node: Any) -> Iterator[Any]:
        """Note the grid of a tensor, or of one that is made of it."""
        from onnx import helper

        grid, source = grid_of(node, self.constants), self.stand_ins.get(node.input[0], node.input[0])
        if self.activations.get(source) == grid:
            self.placed[source, grid] = source
        if (source, grid) not in self.placed:
            kind = self._between(source, grid)
            name = self._unused(f"{source}_{kind.lower()}") if kind else source
            self.placed[source, grid], self.activations[name] = name, grid
            if kind:
                yield helper.make_node(kind, [source], [name], name)
        self.stand_ins[node.output[0]] = self.placed[source, grid]

    def _between(self, source: str, grid: QNNGrid) -> str:
        """The operator between a tensor and one that has the grid; none if the tensor itself can have it."""
        if grid.zero_point == (grid.lowest,) and self.makers.get(source) in _OF_BOTH_SIGNS:
            return "Relu"
        alone = all(
            taker.op_type == "QuantizeLinear" and grid_of(taker, self.constants) == grid
            for taker in self.takers.get(source, [])
        )
        return "" if alone and source not in self.activations and source not in self.outputs else "Identity"

    def restore_outputs(self) -> None:
        """Give the graph's outputs their names again."""
        from onnx import helper

        for output in self.outputs:
            name = self.stand_ins.get(output, output)
            if name in (*self.inputs, *self.outputs, *self.weights):
                if name != output:
                    node = helper.make_node("Identity", [name], [output], self._unused(f"{output}_identity"))
                    self.graph.node.append(node)
                continue
            for node in self.graph.node:
                node.input[:] = [output if given == name else given for given in node.input]
                node.output[:] = [output if made == name else made for made in node.output]
            self.activations[output] = self.activations.pop(name)
            self.stand_ins = {gone: output if new == name else new for gone, new in self.stand_ins.items()}

    def _unused(self, name: str) -> str:
        found = free_name(name, self.taken.__contains__)
        self.taken.add(found)
        return found


def _order(node: Any, dimensions: int) -> tuple[int, ...]:
    """In which a Transpose puts the dimensions; empty for other nodes."""
    if node.op_type != "Transpose":
        return ()
    given = next((attribute.ints for attribute in node.attribute if attribute.name == "perm"), None)
    return tuple(given or reversed(range(dimensions)))
