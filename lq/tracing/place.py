"""Where the fake quantizers sit: at most one per tensor, exactly where the int8 model rounds."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from torch import fx

from lq.config.specs import ActivationSpec
from lq.tracing import ops
from lq.tracing.attention import Attention, is_softmax
from lq.tracing.flow import Flow
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

    Example:
        >>> from torch import nn
        >>> from lq.config.qconfig import QConfig
        >>> from lq.tracing.layers import LayerFinder
        >>> from lq.tracing.symbolic import read_calls
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> graph, *_ = read_calls(net)
        >>> layers, _ = LayerFinder(graph, net, QConfig()).find()
        >>> entry, exit = Placement(graph, layers).sites()
        >>> entry.node, entry.users, entry.activation
        (input_1, (linear,), 'none')
        >>> exit.node, exit.source, exit.activation
        (relu, linear, 'relu')
    """

    node: fx.Node
    source: fx.Node
    users: tuple[fx.Node, ...]
    activation: str
    owned: bool = False
    spec: ActivationSpec | None = None
    group: int | None = None


_NO_ATTENTION = Attention()


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
        attention: the products that run in int8.

    Example:
        >>> from torch import nn
        >>> from lq.config.qconfig import QConfig
        >>> from lq.tracing.layers import LayerFinder
        >>> from lq.tracing.symbolic import read_calls
        >>> class Residual(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         x = self.a(x)
        ...         return x + self.b(x)
        >>> net = Residual()
        >>> graph, *_ = read_calls(net)
        >>> layers, _ = LayerFinder(graph, net, QConfig()).find()
        >>> [site.node for site in Placement(graph, layers).sites()]  # not the sum, which leads to no layer
        [x, linear, linear_1]
    """

    def __init__(
        self,
        graph: fx.Graph,
        layers: Iterable[Layer],
        joins: Collection[fx.Node] | None = None,
        stubs: Collection[fx.Node] = (),
        fuse_add: bool = False,
        round_cheap: bool = False,
        attention: Attention = _NO_ATTENTION,
    ) -> None:
        through_softmax = round_cheap and bool(attention.products)
        self.flow = Flow(graph, layers, joins, stubs, attention.products, through_softmax)
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.unrounded = self._added_by_kernels() if fuse_add else set()
        self.round_cheap, self.attention = round_cheap, attention

    def _added_by_kernels(self) -> set[fx.Node]:
        """Of every addition the last convolution that nothing else reads."""
        found, outputs = set(), self.flow.outputs
        for node in self.order:
            if node in self.flow.joins and ops.operation_of(node) == "add":
                terms = [n for n in ops.joined_tensors(node) or () if n in outputs and _readers(n) == [node]]
                convolutions = [n for n in terms if outputs[n].is_convolution]
                found |= set(sorted(convolutions, key=self.order.__getitem__)[-1:])
        return found

    def sites(self) -> list[Rounding]:
        """All places, in execution order."""
        found = {site.node: site for site in self._written()}
        for reader in self.flow.readers:
            for value in self.flow.read_by(reader):
                site = self._read(value, reader)
                if site is not None:
                    found.setdefault(site.node, site)
        for node in self.flow.between_int8() if self.round_cheap else ():
            found.setdefault(node, _site_of_float(node, tuple(node.users)))
        for node in self._factors() & found.keys():
            found[node] = replace(found[node], spec=found[node].spec or self.attention.factors)
        return sorted(found.values(), key=lambda site: self.order[site.node])

    def _written(self) -> Iterable[Rounding]:
        """What stubs, layers and joins write."""
        for stub in self.flow.stubs:
            yield Rounding(stub, stub, tuple(stub.users), "none")
        for node in (*self.flow.outputs, *self.flow.joins):
            if node not in self.unrounded:
                yield _site(node, tuple(node.users))

    def _read(self, value: fx.Node, reader: fx.Node) -> Rounding | None:
        """Where a value is rounded that was computed in float."""
        path = self.flow.path(value)
        if self.flow.is_written(path[-1]):
            return None
        if reader in self.flow.products and is_softmax(path[-1]):
            # In front of the dropout that training has there, and so for all readers: the range ends at 1.
            return Rounding(path[-1], path[-1], tuple(path[-1].users), "none", spec=self.attention.probabilities)
        node = self.flow.first_that_leads_to_int8(path, reader)
        return _site_of_float(node, tuple(user for user in node.users if self.flow.leads_to_int8(user)))

    def _factors(self) -> set[fx.Node]:
        """All on the ways from where a factor of a product is computed."""
        values = (value for product in self.flow.products for value in self.flow.read_by(product))
        return {node for value in values for node in self.flow.path(value)}


def _readers(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if not ops.reads_no_values(user)]


def _site(node: fx.Node, users: tuple[fx.Node, ...]) -> Rounding:
    if len(users) == 1:
        relu = ops.relu_kind(users[0])
        if relu:
            return Rounding(users[0], node, tuple(users[0].users), relu, owned=True)
    return Rounding(node, node, users, "none", owned=True)


def _site_of_float(source: fx.Node, users: tuple[fx.Node, ...]) -> Rounding:
    relu = ops.relu_kind(source)
    feeding = source.args[0] if relu else None
    if relu and isinstance(feeding, fx.Node) and len(feeding.users) == 1 and len(users) == len(source.users):
        return Rounding(source, feeding, users, relu)
    return Rounding(source, source, users, "none")
