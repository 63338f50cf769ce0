"""Calls that name their first argument, made like all others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from lq.tracing.ops import module_of


def give_input_by_position(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Put the first argument of every call into ``args[0]``, where everything that reads a graph looks for it.

    Args:
        graph: is changed.
        modules: that it calls, by name.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = nn.Linear(4, 2)
        ...     def forward(self, x):
        ...         return self.fc(input=x)
        >>> net = Net()
        >>> graph = fx.symbolic_trace(net).graph
        >>> give_input_by_position(graph, dict(net.named_modules()))
        >>> [(node.args, node.kwargs) for node in graph.nodes if node.op == "call_module"]
        [((x,), {})]
    """
    for node in graph.nodes:
        if node.op not in ("call_module", "call_function") or node.args:
            continue
        name = _first_parameter(node, modules)
        if name in node.kwargs:
            node.args = (node.kwargs[name],)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != name}


def _first_parameter(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    module = module_of(node, modules)
    function: Any = node.target if module is None else module.forward
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # torch's built-in functions have no signature, and one of these names
        return next((name for name in ("input", "tensors") if name in node.kwargs), "")
    first = next(iter(parameters), None)
    return first.name if first is not None and first.kind is first.POSITIONAL_OR_KEYWORD else ""
