"""The first and the last layers of a network, which low bits hurt most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import fx

from lq.tracing.layers import Layer
from lq.tracing.place import Rounding


class Ends:
    """The layers that read no other layer's result, or whose result no other layer reads, and the tensors around them.

    Networks with several inputs or outputs have several of either. One without any other layer has no ends: what was
    asked for all of it would be done nowhere.

    Args:
        layers: all quantized layers of a graph.
        roundings: where values are rounded.

    Source:
        Esser et al., "Learned Step Size Quantization", https://arxiv.org/abs/1902.08153, section 3: first and last
        layers keep 8 bits, as is common.

    Example:
        >>> from torch import nn
        >>> graph = fx.symbolic_trace(nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))).graph
        >>> nodes = [node for node in graph.nodes if node.op == "call_module"]
        >>> ends = Ends([Layer(n, str(n.target), nn.Identity(), "linear", n.args[0]) for n in nodes], [])
        >>> sorted(ends.layers)
        ['0', '2']
    """

    def __init__(self, layers: Sequence[Layer], roundings: Sequence[Rounding]) -> None:
        calls, results = {layer.node for layer in layers}, {layer.last for layer in layers}
        inputs = {layer.node: _input(layer) for layer in layers}
        first = [layer for layer in layers if not _meets(inputs[layer.node], results, lambda n: n.all_input_nodes)]
        last = [layer for layer in layers if not _meets(layer.last.users, calls, lambda n: n.users)]
        self.layers, self.tensors = {layer.name for layer in [*first, *last]}, {layer.last for layer in last}
        if self.layers == {layer.name for layer in layers}:
            self.layers, self.tensors = set(), set()
        rounded = {rounding.node for rounding in roundings}
        for layer in layers:
            if layer.name in self.layers:
                self.tensors |= _nearest(inputs[layer.node], rounded)

    def has(self, rounding: Rounding) -> bool:
        """Whether such a layer reads what is rounded there, or a last one writes it."""
        return rounding.node in self.tensors or rounding.source in self.tensors


def _input(layer: Layer) -> list[fx.Node]:
    return [layer.input] if isinstance(layer.input, fx.Node) else []


def _meets(start: Iterable[fx.Node], wanted: set[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]]) -> bool:
    """Whether one of some nodes is reached, from these on."""
    waiting, seen = list(start), set(start)
    while waiting:
        node = waiting.pop()
        if node in wanted:
            return True
        new = [n for n in step(node) if n not in seen]
        seen.update(new)
        waiting += new
    return False


def _nearest(start: Iterable[fx.Node], wanted: set[fx.Node]) -> set[fx.Node]:
    """The first of some nodes on every way up."""
    waiting, seen, found = list(start), set(start), set()
    while waiting:
        node = waiting.pop()
        if node in wanted:
            found.add(node)
            continue
        new = [n for n in node.all_input_nodes if n not in seen]
        seen.update(new)
        waiting += new
    return found
