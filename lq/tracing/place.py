"""Where the fake quantizers sit: at most one per tensor, exactly where the int8 model rounds."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import fx

from lq.specs import ActivationSpec
from lq.tracing import ops
from lq.tracing.attention import Product, is_softmax
from lq.tracing.layers import Layer


@dataclass(frozen=True)
class Rounding:
    """A place for a fake quantizer.

    Args:
        node: its value is quantized.
        source: the layer or operation that computes it; differs from ``node`` if that is an absorbed ReLU.
        users: the nodes that read the quantized value.
        activation: what the clamp absorbs.
        owned: whether ``source`` is a layer or join that makes a tensor which nobody else needs.
        spec: the grid that the backend wants; ``None`` leaves it to the QConfig.
        group: sites of one group have one range; ``None`` is a group of its own.
    """

    node: fx.Node
    source: fx.Node
    users: tuple[fx.Node, ...]
    activation: str
    owned: bool = False
    spec: ActivationSpec | None = None
    group: int | None = None


def _readers(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if not ops.reads_no_values(user)]


class Placement:
    """Decides which joins (add, mul, cat) run in int8 and where values are quantized.

    A value is quantized where an int8 kernel writes it (behind every quantized layer and join) and where one reads it.
    A join runs in int8 if all its inputs come from quantized layers and all its users lead to quantized ones, so that
    the residual stream of a convolutional net is int8 while that of a transformer, which feeds LayerNorms, stays float.
    A model that is annotated by hand has decided both by itself.

    Args:
        graph: of the recorded call.
        layers: what is quantized.
        joins: the joins that run in int8; ``None`` decides.
        stubs: calls of QuantStubs, whose results are quantized for all that read them.
        fuse_add: do not round a convolution that is only added to something; its kernel adds before it rounds.
        round_cheap: round behind every cheap operation between int8 layers, not only behind the last one in a row.
        products: whose factors are rounded.
        probabilities: the grid of a softmax that is one.
    """

    def __init__(
        self,
        graph: fx.Graph,
        layers: Iterable[Layer],
        joins: Collection[fx.Node] | None = None,
        stubs: Collection[fx.Node] = (),
        fuse_add: bool = False,
        round_cheap: bool = False,
        products: Iterable[Product] = (),
        probabilities: ActivationSpec | None = None,
    ) -> None:
        self.graph, self.stubs = graph, dict.fromkeys(stubs)
        self.outputs = {layer.last: layer for layer in layers}
        self.inputs = {layer.node: layer for layer in self.outputs.values()}
        self.products = {product.node: product for product in products}
        self.probabilities = probabilities
        self.joins = {n for n in graph.nodes if ops.joined_tensors(n)} if joins is None else set(joins)
        while joins is None and self._drop_joins():
            pass
        self.unrounded = self._added_by_kernels() if fuse_add else set()
        self.round_cheap = round_cheap

    def _added_by_kernels(self) -> set[fx.Node]:
        """Of every addition the last convolution that nothing else reads."""
        found = set()
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        for node in order:
            if node in self.joins and ops.operation_of(node) == "add":
                terms = [n for n in ops.joined_tensors(node) or () if n in self.outputs and _readers(n) == [node]]
                convolutions = [n for n in terms if self.outputs[n].is_convolution]
                found |= set(sorted(convolutions, key=order.__getitem__)[-1:])
        return found

    def sites(self) -> list[Rounding]:
        """All places, in execution order."""
        found: dict[fx.Node, Rounding] = {}
        for stub in self.stubs:
            found[stub] = Rounding(stub, stub, tuple(stub.users), "none")
        for node in (*self.outputs, *self.joins):
            if node in self.unrounded:
                continue
            site = self._site(node, tuple(node.users))
            found[site.node] = site
        produced = self.outputs.keys() | self.joins | self.stubs.keys()
        for reader in (*self.inputs, *self.joins, *self.products):
            for value in self._tensor_inputs(reader):
                path = self._path(value)
                if path[-1] in produced:
                    continue
                if reader in self.products and is_softmax(path[-1]):
                    found[path[-1]] = self._site_of_softmax(path[-1])
                    continue
                node = self._first_that_leads_to_int8(path, reader)
                if node in found:
                    continue
                users = tuple(u for u in node.users if self._leads_to_int8(u))
                site = self._site_of_float(node, users)
                found[site.node] = site
        for node in self._in_rows() if self.round_cheap else ():
            found.setdefault(node, self._site_of_float(node, tuple(node.users)))
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        return sorted(found.values(), key=lambda site: order[site.node])

    def _in_rows(self) -> Iterable[fx.Node]:
        """Cheap operations on the way from int8 to int8."""
        cheap = (node for node in self.graph.nodes if ops.is_cheap(node) and ops.relu_kind(node) is None)
        return [node for node in cheap if self._derives_from_int8(node) and self._all_lead_to_int8(node)]

    def _site(self, node: fx.Node, users: tuple[fx.Node, ...]) -> Rounding:
        if len(users) == 1:
            relu = ops.relu_kind(users[0])
            if relu:
                return Rounding(users[0], node, tuple(users[0].users), relu, owned=True)
        return Rounding(node, node, users, "none", owned=True)

    def _site_of_float(self, source: fx.Node, users: tuple[fx.Node, ...]) -> Rounding:
        relu = ops.relu_kind(source)
        feeding = source.args[0] if relu else None
        if relu and isinstance(feeding, fx.Node) and len(feeding.users) == 1 and len(users) == len(source.users):
            return Rounding(source, feeding, users, relu)
        return Rounding(source, source, users, "none")

    def _site_of_softmax(self, softmax: fx.Node) -> Rounding:
        """In front of the dropout that training has there, and for all readers: the range ends at 1."""
        return Rounding(softmax, softmax, tuple(softmax.users), "none", spec=self.probabilities)

    def _tensor_inputs(self, reader: fx.Node) -> list[fx.Node]:
        if reader in self.products:
            return list(self.products[reader].factors)
        if reader in self.joins:
            return ops.joined_tensors(reader) or [n for n in reader.args if isinstance(n, fx.Node)]
        return [self.inputs[reader].input]

    def _same_grid(self, node: fx.Node) -> bool:
        if ops.is_same_grid(node):
            return True
        return ops.relu_kind(node) == "relu"

    def _first_that_leads_to_int8(self, path: list[fx.Node], reader: fx.Node) -> fx.Node:
        """As near to the source as possible, but behind the last fork that something in float reads too."""
        steps = list(zip(path, (reader, *path), strict=False))
        return next(node for node, user in reversed(steps) if self._leads_to_int8(user))

    def _path(self, node: fx.Node) -> list[fx.Node]:
        """From ``node`` back to where its values were computed, past flattening, pooling maxima, and so on."""
        path = [node]
        while node not in self.outputs and node not in self.joins and node not in self.stubs:
            parent = node.args[0] if node.args else None
            absorbed = isinstance(parent, fx.Node) and parent in (self.outputs.keys() | self.joins)
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

    def _on_grid(self, relu: fx.Node) -> bool:
        """Whether a ReLU that was not absorbed reads values that are quantized already."""
        parent = relu.args[0]
        if ops.relu_kind(relu) != "relu" or not isinstance(parent, fx.Node):
            return False
        source = self._path(parent)[-1]
        return source in self.outputs or source in self.joins or source in self.stubs

    def _drop_joins(self) -> bool:
        """Drop joins that cannot run in int8; true if any was dropped."""
        dropped = {
            node
            for node in self.joins
            if not all(self._derives_from_int8(n) for n in ops.joined_tensors(node) or ())
            or not self._all_lead_to_int8(node)
        }
        self.joins -= dropped
        return bool(dropped)

    def _derives_from_int8(self, node: fx.Node) -> bool:
        while True:
            if node in self.outputs or node in self.joins:
                return True
            passes = self._same_grid(node) or ops.is_cheap(node) or ops.relu_kind(node)
            parent = node.args[0] if node.args else None
            if not passes or not isinstance(parent, fx.Node):
                return False
            node = parent

    def _leads_to_int8(self, user: fx.Node) -> bool:
        if user in self.inputs or user in self.joins or user in self.products:
            return True
        passes = self._same_grid(user) or ops.is_cheap(user) or ops.relu_kind(user)
        return bool(passes) and self._all_lead_to_int8(user)

    def _all_lead_to_int8(self, node: fx.Node) -> bool:
        users = [user for user in node.users if not ops.reads_no_values(user)]
        return bool(users) and all(self._leads_to_int8(user) for user in users)
