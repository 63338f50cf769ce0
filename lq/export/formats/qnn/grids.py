"""The integers of a tensor in an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_BIAS_BITS = 32


@dataclass(frozen=True)
class QNNGrid:
    """Integers of a tensor: ``value = scale * (integer - zero_point)``.

    Args:
        scale: one number, or one for each channel.
        zero_point: likewise.
        bits: of an integer.
        signed: whether there are negative integers.
        axis: of the channels; ``None`` if there is one scale.

    Example:
        >>> grid = QNNGrid(scale=(0.5,), zero_point=(3,), bits=8, signed=False)
        >>> [grid.scale[0] * (integer - grid.zero_point[0]) for integer in (grid.lowest, 3, 255)]
        [-1.5, 0.0, 126.0]
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    bits: int
    signed: bool
    axis: int | None = None

    @property
    def lowest(self) -> int:
        """The smallest integer.

        Example:
            >>> QNNGrid((0.5,), (0,), 8, signed=True).lowest
            -128
        """
        return -(2 ** (self.bits - 1)) if self.signed else 0


def grid_of(node: Any, constants: Mapping[str, Any]) -> QNNGrid:
    """The grid of a QuantizeLinear or DequantizeLinear.

    Args:
        node: an ``onnx.NodeProto``.
        constants: initializers by name, its scale and zero point among them.

    Example:
        >>> import numpy as np
        >>> import onnx
        >>> node = onnx.helper.make_node("DequantizeLinear", ["w", "s", "z"], ["y"], axis=0)
        >>> held = {"s": np.float32([0.5, 0.25]), "z": np.int8([0, 0])}
        >>> grid_of(node, {name: onnx.numpy_helper.from_array(values) for name, values in held.items()})
        QNNGrid(scale=(0.5, 0.25), zero_point=(0, 0), bits=8, signed=True, axis=0)
    """
    from onnx import numpy_helper

    scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    return QNNGrid(
        scale=tuple(scale.reshape(-1).tolist()),
        zero_point=tuple(zero.reshape(-1).tolist()),
        bits=8 * zero.dtype.itemsize,
        signed=zero.dtype.kind == "i",
        axis=axis if scale.ndim else None,
    )


def bias_grids(graph: Any, activations: Mapping[str, QNNGrid], parameters: Mapping[str, QNNGrid]) -> dict[str, QNNGrid]:
    """The grids on which an NPU adds biases: input scale times weight scale, in 32 bits.

    Args:
        graph: an ``onnx.GraphProto`` in float.
        activations: grid by the name of a tensor.
        parameters: grid by the name of a weight.

    Returns:
        grid by the name of a bias. One that is used otherwise, too, or by two layers that differ, has none.

    Example:
        >>> import onnx
        >>> graph = onnx.parser.parse_graph('''
        ... g (float[1,1] x) => (float[1,1] y) <float[1,1] w = {3}, float[1] b = {1}> {
        ...     y = Gemm(x, w, b)
        ... }''')
        >>> x, w = QNNGrid((0.5,), (3,), 8, signed=False), QNNGrid((0.25,), (0,), 8, signed=True)
        >>> bias_grids(graph, {"x": x}, {"w": w})
        {'b': QNNGrid(scale=(0.125,), zero_point=(0,), bits=32, signed=True, axis=None)}
    """
    found: dict[str, list[QNNGrid]] = {tensor.name: [] for tensor in graph.initializer if len(tensor.dims) == 1}
    for bias, x, weight in _layers(graph.node):
        if bias in found and x in activations and weight in parameters:
            found[bias].append(_bias_grid(activations[x], parameters[weight]))
    uses = [name for node in graph.node for name in node.input]
    return {name: grids[0] for name, grids in found.items() if len(set(grids)) == 1 and uses.count(name) == len(grids)}


def _layers(nodes: Iterable[Any]) -> Iterator[tuple[str, str, str]]:
    """Bias, input and weight of each; the bias of a MatMul is an Add."""
    products: dict[str, Any] = {}
    for node in nodes:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2:
            yield node.input[2], node.input[0], node.input[1]
        elif node.op_type == "MatMul":
            products[node.output[0]] = node
        elif node.op_type == "Add":
            for product, bias in (tuple(node.input), tuple(node.input)[::-1]):
                if product in products:
                    yield bias, products[product].input[0], products[product].input[1]


def _bias_grid(x: QNNGrid, weight: QNNGrid) -> QNNGrid:
    import numpy as np

    scales = np.float32(x.scale[0]) * np.array(weight.scale, np.float32)
    return QNNGrid(tuple(scales.tolist()), (0,) * scales.size, _BIAS_BITS, True, None if weight.axis is None else 0)
