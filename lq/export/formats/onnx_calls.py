"""The calls that torch.onnx is given for a function: what the rewritings of :mod:`.onnx_program` make of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from lq.compat.torch_private import OpOverload
from lq.export.formats.onnx_program import rewrite
from lq.tracing.names import free_name


def calls_for_onnx(function: Callable[..., Any], *tensors: Tensor) -> str:
    """What torch.onnx translates in the place of a function, to see what a rewriting does.

    Args:
        function: of tensors, with a name for each.
        tensors: its inputs, whose sizes are constants.

    Returns:
        a line for each call of an operation, in the order in which they run; ``constant`` is a tensor in the program.

    Raises:
        RefusedCallError: as :func:`~lq.export.formats.onnx_program.rewrite` does.

    Example:
        >>> print(calls_for_onnx(lambda x, mask: x.clamp(0, 0.5) * (1.0 - mask), torch.ones(2), torch.ones(2).int()))
        clamp = aten.clamp.default(x, 0.0, 0.5)
        to = aten.to.dtype(mask, torch.float32)
        rsub = aten.rsub.Scalar(to, 1.0)
        mul = aten.mul.Tensor(clamp, rsub)
    """
    graph = rewrite(torch.export.export(_Calls(function), tensors, strict=False)).graph
    placeholders = graph.find_nodes(op="placeholder")
    names: dict[fx.Node, str] = {}
    for node, wanted in zip(placeholders[-len(tensors) :], inspect.signature(function).parameters, strict=True):
        names[node] = wanted
    lines = []
    for node in graph.nodes:
        if node not in names and node.op in ("placeholder", "call_function"):
            wanted = _operation(node)[1] if node.op == "call_function" else "constant"
            names[node] = free_name(wanted, set(names.values()).__contains__)
        if node.op == "call_function":
            lines.append(f"{names[node]} = {_written(node, names)}")
    return "\n".join(lines)


def _operation(node: fx.Node) -> tuple[str, str]:
    """Its full name, and the word for its result."""
    full = str(node.target) if isinstance(node.target, OpOverload) else str(getattr(node.target, "__name__", ""))
    return full, full.split(".")[1] if "." in full else full


def _written(node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(shown, value))}]"
        return names[value] if isinstance(value, fx.Node) else repr(value)

    arguments = [*map(shown, node.args), *(f"{name}={shown(value)}" for name, value in node.kwargs.items())]
    return f"{_operation(node)[0]}({', '.join(arguments)})"


class _Calls(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)
