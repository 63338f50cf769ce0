"""Operations that work in place: the graph says who reads their result, and none overwrites a fake-quantized value."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from lq.core.fake_quantize import FakeQuantize
from lq.tracing.errors import UntraceableError, owner_of
from lq.tracing.ops import is_same_grid, module_of

_OPERATORS: Mapping[object, object] = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
}
# Whole views (or the same tensor): what is written into the result is written into the input.
_VIEWS = frozenset(
    {
        torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.swapaxes,
        torch.movedim, "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "unflatten",
        "contiguous", "swapaxes", "movedim", "detach", "T", "mT",
    }
)  # fmt: skip


def is_inplace(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the node overwrites its first input.

    Example:
        >>> graph = fx.symbolic_trace(nn.Sequential(nn.SiLU(inplace=True), nn.SiLU())).graph
        >>> [is_inplace(n, {"0": nn.SiLU(inplace=True), "1": nn.SiLU()}) for n in graph.nodes]
        [False, True, False, False]
    """
    module = module_of(node, modules)
    if module is not None:
        return getattr(module, "inplace", False) is True
    if node.op == "call_method":
        return _trailing_underscore(str(node.target))
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        return node.target in _OPERATORS or _trailing_underscore(name) or inplace_argument(node) is not None
    return False


def read_results_of_inplace_operations(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Let whoever reads a tensor after an operation that overwrote it read that operation's result.

    Raises:
        UntraceableError: if the overwritten tensor is a view of one that is read later.
    """
    position = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        overwritten = node.args[0] if node.args else None
        if not isinstance(overwritten, fx.Node) or not is_inplace(node, modules):
            continue
        for user in list(overwritten.users):
            if position[user] > position[node]:
                user.replace_input_with(overwritten, node)
        for whole in _viewed(overwritten, modules):
            late = [user for user in whole.users if position[user] > position[node]]
            if late:
                reason = (
                    f"`{node.format_node()}` overwrites a view of `{whole.name}`, which `{late[0].name}` reads later"
                )
                remedy = "No graph of values can say that. Write that operation without inplace."
                raise UntraceableError(reason, remedy, owner_of(node))


def make_out_of_place(graph_module: fx.GraphModule) -> None:
    """Give operations that would overwrite a fake quantizer's output, which its backward pass needs, a fresh tensor."""
    modules = dict(graph_module.named_modules())
    for node in list(graph_module.graph.nodes):
        if is_inplace(node, modules) and _shares_memory_with_a_fake_quantizer(node.args[0], modules):
            _make_out_of_place(graph_module, node, modules)


def _shares_memory_with_a_fake_quantizer(arg: Any, modules: Mapping[str, nn.Module]) -> bool:
    while isinstance(arg, fx.Node):
        if isinstance(module_of(arg, modules), FakeQuantize):
            return True
        if not (is_same_grid(arg, modules) or is_inplace(arg, modules)) or not arg.args:
            return False
        arg = arg.args[0]
    return False


def _make_out_of_place(graph_module: fx.GraphModule, node: fx.Node, modules: dict[str, nn.Module]) -> None:
    module = module_of(node, modules)
    if module is not None:
        fresh = copy.copy(module)  # the user's module keeps its flag
        fresh.inplace = False  # type: ignore[assignment]  # a plain attribute of activations and dropouts
        graph_module.set_submodule(str(node.target), fresh)
        modules[str(node.target)] = fresh
        return
    argument = inplace_argument(node)
    twin = _twin(node.target)
    if argument is not None:
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}
        node.args = tuple(False if i == argument else a for i, a in enumerate(node.args))
    elif twin is not None:
        node.target = twin
    else:  # fill_, copy_ and the like have no twin
        with graph_module.graph.inserting_before(node):
            cloned = graph_module.graph.call_function(torch.clone, (node.args[0],))
        node.args = (cloned, *node.args[1:])


def _twin(target: Any) -> Any:
    """The operation that does the same and returns a fresh tensor, if there is one."""
    if target in _OPERATORS:
        return _OPERATORS[target]
    if isinstance(target, str):
        return target[:-1] if hasattr(torch.Tensor, target[:-1]) else None
    name = target.__name__[:-1]
    return getattr(torch, name, None) or getattr(nn.functional, name, None)


def inplace_argument(node: fx.Node) -> int | None:
    """Position of ``inplace=True`` among the arguments of a function, or ``None`` if it does not work in place."""
    try:
        parameters = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # built-in functions have no signature, and no such argument
        return None
    if "inplace" not in parameters:
        return None
    index = parameters.index("inplace")
    given = node.args[index] if len(node.args) > index else node.kwargs.get("inplace", False)
    return index if given is True else None


def _viewed(node: fx.Node, modules: Mapping[str, nn.Module]) -> Iterator[fx.Node]:
    """What ``node`` is a view of, and what that is a view of, and so on."""
    while _is_view(node, modules) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        yield node


def _is_view(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    module = module_of(node, modules)
    if module is not None:
        return isinstance(module, (nn.Flatten, nn.Unflatten, nn.Identity))
    return node.op in ("call_function", "call_method") and node.target in _VIEWS


def _trailing_underscore(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")
