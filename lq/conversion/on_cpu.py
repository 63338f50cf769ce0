"""A prepared graph of any device and type, on the CPU and in float32, where int8 models come from."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from lq.tracing.structure import map_tensors

_FLOATS = frozenset({torch.bfloat16, torch.float16, torch.float64})


def on_cpu_in_float32(prepared: fx.GraphModule) -> fx.GraphModule:
    """A copy on the CPU, in float32 and in evaluation mode.

    A model of another type takes inputs of that type, and of float32, as before.

    Args:
        prepared: is left as it is.

    Example:
        >>> graph_module = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 2)).bfloat16())
        >>> on_cpu_in_float32(graph_module)(torch.ones(1, 4, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    twin = copy.deepcopy(prepared).cpu()
    replaced = other_float_types(twin)
    twin = twin.float().eval()
    for node in twin.graph.nodes:
        node.args, node.kwargs = _plain(node.args, replaced), _plain(node.kwargs, replaced)
    if replaced:
        _take_any_type(twin.graph)
    twin.recompile()
    return twin


def other_float_types(model: nn.Module) -> frozenset[torch.dtype]:
    """The types of a model's parameters that int8 models have float32 for.

    Example:
        >>> other_float_types(nn.Linear(2, 1).half()), other_float_types(nn.Linear(2, 1))
        (frozenset({torch.float16}), frozenset())
    """
    return frozenset(parameter.dtype for parameter in model.parameters()) & _FLOATS


def as_float32(value: Any) -> Any:
    """Tensors of other float types, alone or in structures, in float32; all else as it is.

    Example:
        >>> as_float32([torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.int64)])
        [tensor([1.]), tensor([1])]
    """
    return map_tensors(value, lambda t: t.float() if t.dtype in _FLOATS else t)


def _plain(arguments: Any, replaced: frozenset[torch.dtype]) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return torch.float32 if isinstance(value, torch.dtype) and value in replaced else value

    return fx.node.map_aggregate(arguments, plain)


def _take_any_type(graph: fx.Graph) -> None:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in inputs:
        with graph.inserting_after(inputs[-1]):
            new = graph.call_function(as_float32, (node,))
        node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
