"""Calls that name their first argument, made like all others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

# Of torch's functions without a signature: those whose "input" comes second.
_FIRST: Mapping[Any, str] = {
    torch.where: "condition",
    torch.searchsorted: "sorted_sequence",
    torch.polygamma: "n",
    torch.special.polygamma: "n",
}


def give_input_by_position(graph: fx.Graph) -> None:
    """Put the first argument of every call into ``args[0]``, where everything that reads a graph looks for it.

    Args:
        graph: is changed.

    Example:
        >>> graph = fx.symbolic_trace(lambda x: F.relu(input=x)).graph
        >>> give_input_by_position(graph)
        >>> [(node.args, node.kwargs) for node in graph.nodes if node.op == "call_function"]
        [((x,), {'inplace': False})]
    """
    for node in graph.nodes:
        if node.op != "call_function" or node.args:
            continue
        name = _first_parameter(node)
        if name in node.kwargs:
            node.args = (node.kwargs[name],)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != name}


def _first_parameter(node: fx.Node) -> str:
    function: Any = node.target
    try:
        first = next(iter(inspect.signature(function).parameters.values()), None)
    except (TypeError, ValueError):
        return _FIRST.get(function) or next((name for name in ("input", "tensors") if name in node.kwargs), "")
    if first is None:
        return ""
    # Such as F.max_pool2d, which passes all on to one of two functions.
    if first.kind is first.VAR_POSITIONAL and getattr(function, "__module__", "") == F.__name__:
        return "input"
    return first.name if first.kind is first.POSITIONAL_OR_KEYWORD else ""
