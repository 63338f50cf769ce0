"""Inputs that only a loss reads, such as labels, which an application does not have."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import fx

from lq.compat.torch_private import OpOverload, full_name

_LOSSES = ("_loss", "_loss_nd", "_loss2d", "cross_entropy", "binary_cross_entropy_with_logits")


def inputs_of_losses(graph: fx.Graph) -> list[str]:
    """Names of the inputs whose values are read to compute a loss, and for nothing else.

    Args:
        graph: of a model that returns a loss beside its outputs; of one that returns nothing else, all inputs count as
            those of the model.

    Example:
        >>> from torch.nn import functional as F
        >>> traced = fx.symbolic_trace(lambda x, labels: (x, F.cross_entropy(x, labels)))
        >>> inputs_of_losses(traced.graph)
        ['labels']
    """
    losses = [node for node in graph.nodes if _is_loss(node)]
    outputs = [node for node in graph.nodes if node.op == "output"]
    sizes = [node for node in graph.nodes if node.op == "call_method" and node.target == "size"]
    read = _above(outputs, without=[*losses, *sizes])
    taught = _above(losses) - read
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    return [str(node.target) for node in inputs if node in taught] if not read.isdisjoint(inputs) else []


def _is_loss(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    name = full_name(node.target) if isinstance(node.target, OpOverload) else getattr(node.target, "__name__", "")
    return name.endswith(_LOSSES)


def _above(start: Iterable[fx.Node], without: Collection[fx.Node] = ()) -> set[fx.Node]:
    """All nodes that some nodes depend on, and these; ways through the nodes ``without`` do not count."""
    waiting, seen = list(start), set(start)
    while waiting:
        new = [node for node in waiting.pop().all_input_nodes if node not in seen and node not in without]
        seen.update(new)
        waiting += new
    return seen
