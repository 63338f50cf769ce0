"""What can be read of an exported graph: constants, marks, the modules that were running."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from lq.compat.torch_private import OpOverload
from lq.tracing import aten

_NORMS = ("aten::batch_norm", "aten::_native_batch_norm_legit_no_training")


class Constants:
    """The tensors of an exported graph that do not depend on its inputs.

    Args:
        known: by their placeholders.

    Example:
        >>> graph = fx.Graph()
        >>> x, weight = map(graph.placeholder, ("x", "weight"))
        >>> doubled = graph.call_function(torch.mul, (weight, 2))
        >>> constants = Constants({weight: torch.ones(2)})
        >>> constants.value(doubled), constants.value(graph.call_function(torch.mul, (x, doubled)))
        (tensor([2., 2.]), None)
    """

    def __init__(self, known: dict[fx.Node, Tensor]) -> None:
        self._known: dict[fx.Node, Any] = dict(known)

    @torch.no_grad()
    def value(self, value: Any) -> Any:
        """The tensor that a node stands for, itself if it is no node; ``None`` if it depends on the inputs."""
        if not isinstance(value, fx.Node) or value in self._known:
            return self._known.get(value) if isinstance(value, fx.Node) else value
        found = None
        if value.op == "call_function":
            sources = {source: self.value(source) for source in value.all_input_nodes}
            if all(source is not None for source in sources.values()):
                found = self._computed(value, sources)
        self._known[value] = found
        return found

    @staticmethod
    def _computed(node: fx.Node, sources: dict[fx.Node, Any]) -> Any:
        if is_weight_mark(node):
            return sources[node.all_input_nodes[0]]
        args, kwargs = fx.map_arg((node.args, node.kwargs), sources.__getitem__)
        function: Any = node.target
        return function(*args, **kwargs)


def module_stack(node: fx.Node) -> dict[str, tuple[str, str]]:
    """Paths and classes of the modules that were running, outermost first, as seen from the target.

    Example:
        >>> node = fx.Graph().placeholder("x")
        >>> node.meta["nn_module_stack"] = {"1": ("target", torch.nn.Sequential), "2": ("target.0", torch.nn.ReLU)}
        >>> module_stack(node)
        {'': ('', 'torch.nn.modules.container.Sequential'), '0': ('0', 'torch.nn.modules.activation.ReLU')}
    """
    inside = [entry for entry in (node.meta.get("nn_module_stack") or {}).values() if isinstance(entry, tuple)]
    paths = [(str(p), t if isinstance(t, str) else f"{t.__module__}.{t.__qualname__}") for p, t in inside]
    return {
        path.removeprefix("target").removeprefix("."): (path.removeprefix("target").removeprefix("."), kind)
        for path, kind in paths
        if path == "target" or path.startswith("target.")
    }


def is_weight_mark(node: Any) -> bool:
    """Whether a node marks a weight.

    Example:
        >>> import lq.core.marks
        >>> graph = fx.Graph()
        >>> weight = graph.placeholder("weight")
        >>> is_weight_mark(graph.call_function(torch.ops.lq.weight_mark.default, (weight, 0))), is_weight_mark(weight)
        (True, False)
    """
    if not isinstance(node, fx.Node) or not isinstance(node.target, OpOverload):
        return False
    return node.target._schema.name == "lq::weight_mark"


def norm_behind(node: fx.Node) -> fx.Node | None:
    """The BatchNorm in evaluation that alone reads a layer.

    Args:
        node: the call of the layer.

    Returns:
        the call of the BatchNorm; ``None`` if there is none, or something else reads the layer, too.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).eval()
        >>> graph = torch.export.export(net, (torch.ones(1, 1, 4, 4),), strict=False).graph
        >>> conv = graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default)[0]
        >>> norm_behind(conv).target._opname
        'batch_norm'
    """
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if not isinstance(user.target, OpOverload) or user.target._schema.name not in _NORMS or user.args[0] is not node:
        return None
    named = aten.arguments(user.target, user.args, user.kwargs)
    if named.get("training", False) or named["running_mean"] is None:
        return None
    return user
