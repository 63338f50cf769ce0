"""What is computed from what: whether int8 layers are at the ends of a way through a recorded call."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable

from torch import fx

from lq.tracing import ops
from lq.tracing.attention import Product, is_softmax
from lq.tracing.layers import Layer


class Flow:
    """A graph, and what in it computes on integers.

    Args:
        graph: of the recorded call.
        layers: what is quantized.
        joins: the additions, multiplications and concatenations that run in int8; ``None`` decides.
        stubs: calls of QuantStubs, whose results are quantized for all that read them.
        products: products of two activations that run in int8.
        through_softmax: whether a softmax, and the scale in front of it, is an operation between int8 ones.

    Example:
        >>> from torch import nn
        >>> from lq.config.qconfig import QConfig
        >>> from lq.tracing.layers import LayerFinder
        >>> from lq.tracing.symbolic import read_calls
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2))
        >>> graph, *_ = read_calls(net)
        >>> layers, _ = LayerFinder(graph, net, QConfig()).find()
        >>> flow = Flow(graph, layers, joins=None, stubs=(), products=(), through_softmax=False)
        >>> flow.readers, flow.between_int8()
        ((linear, linear_1), [sigmoid])
    """

    def __init__(
        self,
        graph: fx.Graph,
        layers: Iterable[Layer],
        joins: Collection[fx.Node] | None,
        stubs: Collection[fx.Node],
        products: Iterable[Product],
        through_softmax: bool,
    ) -> None:
        self.graph, self.stubs, self.through_softmax = graph, dict.fromkeys(stubs), through_softmax
        self.outputs = {layer.last: layer for layer in layers}
        self.inputs = {layer.node: layer for layer in self.outputs.values()}
        self.products = {product.node: product for product in products}
        self.joins = {n for n in graph.nodes if ops.joined_tensors(n)} if joins is None else set(joins)
        while joins is None and self._drop_joins():
            pass

    @property
    def readers(self) -> tuple[fx.Node, ...]:
        """All that reads integers."""
        return (*self.inputs, *self.joins, *self.products)

    def read_by(self, reader: fx.Node) -> list[fx.Node]:
        """The tensors that one of the readers takes as integers."""
        if reader in self.products:
            return list(self.products[reader].factors)
        if reader in self.joins:
            return ops.joined_tensors(reader) or [n for n in reader.args if isinstance(n, fx.Node)]
        return [self.inputs[reader].input]

    def is_written(self, node: fx.Node) -> bool:
        """Whether a layer, a join or a stub writes a value, so that it is rounded for all that read it."""
        return node in self.outputs or node in self.joins or node in self.stubs

    def path(self, node: fx.Node) -> list[fx.Node]:
        """From ``node`` back to where its values were computed, past flattening, pooling maxima, and so on."""
        path = [node]
        while not self.is_written(node):
            parent = node.args[0] if node.args else None
            absorbed = parent in self.outputs or parent in self.joins
            is_relu = ops.relu_kind(node) is not None
            if not isinstance(parent, fx.Node):
                break
            if absorbed and is_relu and len(parent.users) == 1:
                return [*path, parent]
            if not ops.is_same_grid(node) and not (is_relu and self._on_grid(node)):
                break
            node = parent
            path.append(node)
        return path

    def first_that_leads_to_int8(self, path: list[fx.Node], reader: fx.Node) -> fx.Node:
        """As near to the source as possible, but behind the last fork that something in float reads too.

        Of an operation with several results that is the one which is read.
        """
        steps = [(node, user) for node, user in zip(path, (reader, *path), strict=False) if not _is_tuple(node)]
        return next(node for node, user in reversed(steps) if self.leads_to_int8(user))

    def leads_to_int8(self, user: fx.Node) -> bool:
        """Whether an operation computes on integers, or all that comes of it is rounded again."""
        if user in self.inputs or user in self.joins or user in self.products:
            return True
        return self._is_between(user) and self.all_lead_to_int8(user)

    def all_lead_to_int8(self, node: fx.Node) -> bool:
        """Whether all that read a value do."""
        users = [user for user in node.users if not ops.reads_no_values(user)]
        return bool(users) and all(self.leads_to_int8(user) for user in users)

    def between_int8(self) -> list[fx.Node]:
        """Cheap operations, and products, on the way from int8 to int8."""
        return [node for node in self.graph.nodes if self._is_rounded_alone(node) and self.all_lead_to_int8(node)]

    def _is_rounded_alone(self, node: fx.Node) -> bool:
        if node in self.products:
            return True
        return self._is_cheap(node) and ops.relu_kind(node) is None and self._derives_from_int8(node)

    def _is_cheap(self, node: fx.Node) -> bool:
        return ops.is_cheap(node) or (self.through_softmax and (is_softmax(node) or ops.is_scaling(node)))

    def _is_between(self, node: fx.Node) -> bool:
        return ops.is_same_grid(node) or self._is_cheap(node) or ops.relu_kind(node) is not None

    def _on_grid(self, relu: fx.Node) -> bool:
        """Whether a ReLU that was not absorbed reads values that are quantized already."""
        parent = relu.args[0]
        if ops.relu_kind(relu) != "relu" or not isinstance(parent, fx.Node):
            return False
        return self.is_written(self.path(parent)[-1])

    def _drop_joins(self) -> bool:
        """Drop joins that cannot run in int8; true if any was dropped."""
        dropped = {
            node
            for node in self.joins
            if not all(self._derives_from_int8(n) for n in ops.joined_tensors(node) or ())
            or not self.all_lead_to_int8(node)
        }
        self.joins -= dropped
        return bool(dropped)

    def _derives_from_int8(self, node: fx.Node) -> bool:
        while True:
            if node in self.outputs or node in self.joins or node in self.products:
                return True
            parent = node.args[0] if node.args else None
            if not self._is_between(node) or not isinstance(parent, fx.Node):
                return False
            node = parent


def _is_tuple(node: fx.Node) -> bool:
    return ops.returns_several(node) and any(user.target is operator.getitem for user in node.users)
