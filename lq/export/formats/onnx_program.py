"""A ``torch.export`` program without the calls that torch.onnx (torch 2.15) cannot translate, or translates wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from lq.export.formats.onnx_pooling import rewrite_average_pooling, rewrite_max_pooling

aten = torch.ops.aten
Rewriting = Callable[["Rewriter", fx.Node], "fx.Node | None"]


class Rewriter:
    """Writes calls in front of a node of a graph.

    Args:
        graph: of the program.
        node: the call to replace.
    """

    def __init__(self, graph: fx.Graph, node: fx.Node) -> None:
        self.graph, self.node = graph, node

    def call(self, operation: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of an operation, with what exporters ask of a node."""
        values = fx.map_arg((args, kwargs), lambda node: node.meta["val"])
        with self.graph.inserting_before(self.node):
            made = self.graph.call_function(operation, args, kwargs)
        made.meta = {**self.node.meta, "val": operation(*values[0], **values[1])}
        return made


def rewrite(program: ExportedProgram) -> ExportedProgram:
    """Replace calls in place, so that torch.onnx writes what they compute.

    Args:
        program: as ``torch.export`` made it.

    Returns:
        the program.

    Example:
        >>> class Attends(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.nn.functional.scaled_dot_product_attention(x, x, x)
        >>> program = rewrite(torch.export.export(Attends(), (torch.zeros(2, 4, 8),)))
        >>> [node.target.name() for node in program.graph.nodes if node.op == "call_function"][2:]
        ['aten::unsqueeze', 'aten::scaled_dot_product_attention', 'aten::squeeze.dim']
    """
    module = program.graph_module
    for node in list(module.graph.nodes):
        rewriting = _REWRITINGS.get(node.target)
        made = None if rewriting is None else rewriting(Rewriter(module.graph, node), node)
        if made is not None:
            node.replace_all_uses_with(made)
            module.graph.erase_node(node)
    module.recompile()
    return program


def _copied(write: Rewriter, node: fx.Node) -> fx.Node | None:
    """``copy`` of a tensor of fewer dimensions, which torch.onnx does not broadcast."""
    target, source = node.args[:2]
    wanted, given = (value.meta["val"] for value in (target, source))  # type: ignore[union-attr]
    if given.shape == wanted.shape:
        return None
    if given.dtype != wanted.dtype:
        source = write.call(aten.to.dtype, source, wanted.dtype)
    if not all(isinstance(size, int) for size in wanted.shape):
        return write.call(aten.expand_as.default, source, target)
    return write.call(aten.expand.default, source, list(wanted.shape))


def _attended(write: Rewriter, node: fx.Node) -> fx.Node | None:
    """Attention of three dimensions, without heads, or of five and more, as over windows: torch.onnx takes four."""
    query, key, value, *others = node.args
    shapes = [factor.meta["val"].shape for factor in (query, key, value)]  # type: ignore[union-attr]
    mask = others[0] if others else node.kwargs.get("attn_mask")
    kwargs = {**dict(zip(("dropout_p", "is_causal"), others[1:], strict=False)), **node.kwargs, "attn_mask": mask}
    if {len(shape) for shape in shapes} == {3}:
        return _with_one_head(write, (query, key, value), kwargs)
    if len(shapes[0]) > 4 and all(shape[:-2] == shapes[0][:-2] for shape in shapes):
        return _with_one_batch(write, (query, key, value), kwargs)
    return None


def _with_one_head(write: Rewriter, factors: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
    mask = kwargs["attn_mask"]
    if isinstance(mask, fx.Node) and mask.meta["val"].dim() == 3:
        kwargs["attn_mask"] = write.call(aten.unsqueeze.default, mask, 1)
    factors = tuple(write.call(aten.unsqueeze.default, factor, 1) for factor in factors)
    out = write.call(aten.scaled_dot_product_attention.default, *factors, **kwargs)
    return write.call(aten.squeeze.dim, out, 1)


def _with_one_batch(write: Rewriter, factors: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node | None:
    """All dimensions in front of the heads as one."""
    mask, leading = kwargs["attn_mask"], factors[0].meta["val"].shape[:-3]
    last, inner = len(leading) - 1, factors[0].meta["val"].shape[1:-1]
    if not all(isinstance(size, int) for size in inner):
        return None
    if isinstance(mask, fx.Node) and mask.meta["val"].dim() > 3:
        given = mask.meta["val"].shape[:-3]
        if given != leading and any(size != 1 for size in given):
            return None
        kwargs["attn_mask"] = write.call(aten.flatten.using_ints, mask, 0, len(given) - 1)
    flat = (write.call(aten.flatten.using_ints, factor, 0, last) for factor in factors)
    out = write.call(aten.scaled_dot_product_attention.default, *flat, **kwargs)
    return write.call(aten.reshape.default, out, [-1, *inner, factors[2].meta["val"].shape[-1]])


def _pooled(write: Rewriter, node: fx.Node) -> fx.Node | None:
    """Adaptive pooling over three dimensions, whose windows are all of one size where the sizes divide."""
    x, wanted = node.args
    given = x.meta["val"].shape[-3:]  # type: ignore[union-attr]
    if not all(isinstance(size, int) and size % to == 0 for size, to in zip(given, wanted, strict=True)):  # type: ignore[arg-type]
        return None
    window = [size // to for size, to in zip(given, wanted, strict=True)]  # type: ignore[arg-type]
    return write.call(aten.avg_pool3d.default, x, window, window)


def _average(write: Rewriter, node: fx.Node) -> fx.Node | None:
    return rewrite_average_pooling(write.call, node)


def _largest(write: Rewriter, node: fx.Node) -> fx.Node | None:
    return rewrite_max_pooling(write.call, node)


_REWRITINGS: dict[Any, Rewriting] = {
    aten.copy.default: _copied,
    aten.scaled_dot_product_attention.default: _attended,
    aten.adaptive_avg_pool3d.default: _pooled,
    aten.avg_pool1d.default: _average,
    aten.avg_pool2d.default: _average,
    aten.avg_pool3d.default: _average,
    aten.max_pool1d.default: _largest,
    aten.max_pool2d.default: _largest,
    aten.max_pool3d.default: _largest,
}
