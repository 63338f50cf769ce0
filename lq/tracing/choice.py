"""Where a graph chooses boxes: behind that, two models need not have the same number of them in the same order."""

from __future__ import annotations

from torch import fx

from lq.compat.torch_private import OpOverload, full_name

_CHOICES = frozenset({"torchvision::nms"})  # non-maximum suppression


def chooses_boxes(node: fx.Node) -> bool:
    """Whether a node is a choice of boxes by their scores and overlaps.

    Example:
        >>> import torch
        >>> chooses_boxes(fx.Graph().call_function(torch.ops.aten.relu.default))
        False
    """
    return isinstance(node.target, OpOverload) and full_name(node.target) in _CHOICES


def behind_choices(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that choose boxes, and all that depend on such.

    Example:
        >>> behind_choices(fx.symbolic_trace(lambda x: x + 1).graph)
        set()
    """
    behind: set[fx.Node] = set()
    for node in graph.nodes:
        if chooses_boxes(node) or not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
    return behind
