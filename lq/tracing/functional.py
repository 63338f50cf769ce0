"""Operations of an exported graph that work in place, replaced by those that do not."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from lq.compat.torch_private import OpOverload, is_composite

# Of the operations that torch composes of others, which may or may not return a view, those that never do.
_FRESH = frozenset(
    {
        "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "batch_norm",
        "linear", "layer_norm", "group_norm", "instance_norm", "rms_norm", "max_pool1d", "max_pool2d", "max_pool3d",
        "matmul", "scaled_dot_product_attention", "softmax", "log_softmax", "adaptive_avg_pool1d",
        "adaptive_avg_pool2d", "adaptive_avg_pool3d", "upsample_nearest2d", "upsample_bilinear2d", "pad",
        "embedding", "relu6", "selu",
        "einsum", "stack", "cat", "concat",
    }
)  # fmt: skip


def functional(program: ExportedProgram) -> tuple[ExportedProgram, fx.Graph]:
    """A program and its graph without operations that overwrite their inputs, nested graphs, and steps of ``vmap``.

    Where nobody else reads the overwritten tensor, which is the rule (``relu_`` behind a convolution), that takes a
    renaming; torch's own functionalization, which is always right, takes several times as long as the export.

    Args:
        program: from ``torch.export.export``; it is left as it is.

    Example:
        >>> class Net(torch.nn.Module):
        ...     def forward(self, x):
        ...         return (x * 2).relu_()
        >>> _, graph = functional(torch.export.export(Net(), (torch.ones(2),), strict=False))
        >>> [str(node.target) for node in graph.nodes if node.op == "call_function"]
        ['aten.mul.Tensor', 'aten.relu.default']
    """
    graph = copy.deepcopy(program.graph)
    nested = any(node.op == "get_attr" for node in graph.nodes)
    transformed = any(getattr(node.target, "__module__", "").startswith("torch._functorch") for node in graph.nodes)
    if nested or transformed or not _rename(graph):
        program = program.run_decompositions({})
        graph = copy.deepcopy(program.graph)
    return program, graph


def _rename(graph: fx.Graph) -> bool:
    """Replace every operation in place; false if that would change a tensor that is read elsewhere."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    families = _families(graph)
    for node in position:
        if not _overwrites(node):
            continue
        twin, overwritten = _out_of_place(node), node.args[0]
        now = position[node]
        others = [m for m in families[node] if m is not overwritten and position[m] < now]
        if twin is None or any(position[user] > now for member in others for user in member.users):
            return False
        assert isinstance(overwritten, fx.Node)
        node.target = twin
        _read_from(overwritten, node, position)
    return True


def _read_from(old: fx.Node, new: fx.Node, position: dict[fx.Node, int]) -> None:
    for user in list(old.users):
        if position[user] > position[new]:
            user.replace_input_with(old, new)


def _families(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For every node those that may share its memory."""
    families: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        family = [node]
        if node.op == "call_function" and _may_alias(node.target):
            merged = {id(families[source]): families[source] for source in node.all_input_nodes}
            family += [member for part in merged.values() for member in part]
        for member in family:
            families[member] = family
    return families


def _may_alias(target: Any) -> bool:
    if not isinstance(target, OpOverload):
        return True
    if target.namespace != "aten" or target._schema.name.partition("::")[2] in _FRESH:
        return target._schema.is_mutable
    if any(result.alias_info is not None for result in target._schema.returns):
        return True
    return is_composite(target)


def _overwrites(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _out_of_place(node: fx.Node) -> OpOverload | None:
    """The operation that returns what this one writes into its first argument, if there is one."""
    target: Any = node.target
    name = target._schema.name.partition("::")[2]
    written = [a.name for a in target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if target.namespace != "aten" or not name.endswith("_") or written != ["self"]:
        return None
    twin = _twin(target, getattr(torch.ops.aten, name[:-1], None))
    types = {n.meta["val"].dtype for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)}
    # What works in place keeps the type of the first argument; the other promotes.
    return twin if len(types) == 1 and node.meta["val"].dtype in types else None


def _twin(target: Any, operation: Any) -> OpOverload | None:
    """The overload with the same arguments, which may have another name: ``pow_.Scalar`` is ``pow.Tensor_Scalar``."""
    if operation is None:
        return None
    wanted = [(a.name, str(a.type)) for a in target._schema.arguments]
    names = sorted(operation.overloads(), key=lambda name: name != target._overloadname)
    overloads: list[Any] = [getattr(operation, name) for name in names]
    return next((o for o in overloads if [(a.name, str(a.type)) for a in o._schema.arguments] == wanted), None)
