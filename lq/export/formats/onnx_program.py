"""A ``torch.export`` program without the calls that torch.onnx (torch 2.15) cannot translate, or translates wrongly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from lq.compat.torch_private import ANTIALIASED
from lq.export.formats.onnx_adaptive import rewrite_adaptive_pooling
from lq.export.formats.onnx_attention import rewrite_attention
from lq.export.formats.onnx_numbers import (
    rewrite_angle,
    rewrite_clamp,
    rewrite_log_of_sum,
    rewrite_log_sigmoid,
    rewrite_loss_of_logits,
    rewrite_stack,
    rewrite_subtraction,
    rewrite_with_dtype,
)
from lq.export.formats.onnx_pooling import rewrite_average_pooling, rewrite_max_pooling
from lq.export.formats.onnx_resizing import (
    check_resizing,
    rewrite_circular_padding,
    rewrite_nearest_resizing,
    rewrite_resizing,
)
from lq.export.formats.onnx_rewriter import RefusedCallError, Rewriter, no_translation
from lq.tracing.origin import operation_of

aten = torch.ops.aten
Made = fx.Node | tuple[fx.Node, ...]
Rewriting = Callable[[Rewriter, fx.Node], Made | None]
"""Returns what replaces a call; of one with several results all, or the first if nothing reads the others."""


def rewrite(program: ExportedProgram) -> ExportedProgram:
    """Replace calls in place, so that torch.onnx writes what they compute.

    Args:
        program: as ``torch.export`` made it.

    Returns:
        the program.

    Raises:
        RefusedCallError: if it has calls that torch.onnx can do nothing with.

    Example:
        >>> class Attends(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.nn.functional.scaled_dot_product_attention(x, x, x)
        >>> program = rewrite(torch.export.export(Attends(), (torch.zeros(2, 4, 8),)))
        >>> [node.target.name() for node in program.graph.nodes if node.op == "call_function"][2:]
        ['aten::unsqueeze', 'aten::scaled_dot_product_attention', 'aten::squeeze.dim']
    """
    module, counts = program.graph_module, Counter[str]()
    for node in list(module.graph.nodes):
        rewriting, operation = _REWRITINGS.get(node.target), operation_of(node)
        try:
            made = None if rewriting is None else rewriting(Rewriter(module.graph, node, program), node)
        except ValueError as error:
            raise RefusedCallError(str(error), operation, counts[operation]) from error
        counts[operation] += 1
        if made is not None:
            _replace(node, made)
    module.recompile()
    return program


def _replace(node: fx.Node, made: Made) -> None:
    if isinstance(node.meta["val"], tuple):
        results = made if isinstance(made, tuple) else (made,)
        for result in list(node.users):
            place: Any = result.args[1]
            if result.users:
                result.replace_all_uses_with(results[place])
            node.graph.erase_node(result)
    else:
        assert isinstance(made, fx.Node)
        node.replace_all_uses_with(made)
    node.graph.erase_node(node)


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


def _by_calls(rewriting: Callable[[Callable[..., fx.Node], fx.Node], Made | None]) -> Rewriting:
    """One that needs nothing but to write calls."""
    return lambda write, node: rewriting(write.call, node)


def _resized(write: Rewriter, node: fx.Node) -> fx.Node | None:
    return rewrite_resizing(write.call, write.constant, node)


def _resized_to_nearest(write: Rewriter, node: fx.Node) -> fx.Node | None:
    return rewrite_nearest_resizing(write.call, write.constant, node)


def _squeezed(write: Rewriter, node: fx.Node) -> fx.Node | None:
    """``squeeze`` of all dimensions of one element, where these are known: not every runtime looks for them."""
    x: Any = node.args[0]
    sizes = list(x.meta["val"].shape)
    if not all(isinstance(size, int) for size in sizes):
        return None
    return write.call(aten.squeeze.dims, x, [dim for dim, size in enumerate(sizes) if size == 1])


def _joined(write: Rewriter, node: fx.Node) -> fx.Node | None:
    """``hstack``, ``vstack`` and ``dstack`` of tensors with enough dimensions; torch.onnx makes loops of them."""
    kind, tensors = node.target._schema.name[-6:], node.args[0]  # type: ignore[union-attr]
    rank = min(tensor.meta["val"].dim() for tensor in tensors)  # type: ignore[union-attr]
    dim = {"hstack": 1, "vstack": 0, "dstack": 2}[kind]
    return None if rank <= max(dim, 1) else write.call(aten.cat.default, tensors, dim)


def _selected(write: Rewriter, node: fx.Node) -> fx.Node | None:
    """Indices along one dimension; torch.onnx moves that to the front and back, which OpenVINO mistakes for layouts."""
    x, indices = node.args
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]  # type: ignore[arg-type]
    if len(given) != 1 or given[0][1].meta["val"].dtype not in (torch.int32, torch.int64):
        return None
    dim, index = given[0]
    shape = list(index.meta["val"].shape)
    if len(shape) == 1:
        return write.call(aten.index_select.default, x, dim, index)
    if not shape or not all(isinstance(size, int) for size in shape):
        return None
    flat = write.call(aten.index_select.default, x, dim, write.call(aten.reshape.default, index, [-1]))
    return write.call(aten.unflatten.int, flat, dim, shape)


def _averaged(write: Rewriter, node: fx.Node) -> fx.Node | None:
    """Means of what is scattered to one place, which torch.onnx takes for the last of them: a sum and a count."""
    x, dim, index, source, kind = node.args[:5]
    if kind != "mean" or not x.meta["val"].is_floating_point():  # type: ignore[union-attr]
        return None

    def total(values: Any, scattered: Any) -> fx.Node:
        return write.call(node.target, values, dim, index, scattered, "sum", **node.kwargs)

    count = total(*(write.call(aten.ones_like.default, tensor) for tensor in (x, source)))
    return write.call(aten.div.Tensor, total(x, source), count)


def _projected(write: Rewriter, node: fx.Node) -> None:
    """An LSTM with ``proj_size``, which torch.onnx writes as one without."""
    hidden, cell = (state.meta["val"] for state in node.args[1])  # type: ignore[union-attr]
    if hidden.shape[-1] != cell.shape[-1]:
        raise ValueError(f"torch.onnx {no_translation('an LSTM with proj_size')}")


def _refused(write: Rewriter, node: fx.Node) -> None:
    raise ValueError(f"torch.onnx {no_translation(str(node.target).removesuffix('.default'))}")


_REWRITINGS: dict[Any, Rewriting] = {
    aten.clamp.default: _by_calls(rewrite_clamp),
    aten.clamp_.default: _by_calls(rewrite_clamp),
    aten.clip.default: _by_calls(rewrite_clamp),
    aten.clip_.default: _by_calls(rewrite_clamp),
    aten.rsub.Scalar: _by_calls(rewrite_subtraction),
    aten.stack.default: _by_calls(rewrite_stack),
    aten.logaddexp.default: _by_calls(rewrite_log_of_sum),
    aten.binary_cross_entropy_with_logits.default: _by_calls(rewrite_loss_of_logits),
    aten.log_sigmoid.default: _by_calls(rewrite_log_sigmoid),
    aten.mean.default: _by_calls(rewrite_with_dtype),
    aten.mean.dim: _by_calls(rewrite_with_dtype),
    aten.softmax.int: _by_calls(rewrite_with_dtype),
    aten.log_softmax.int: _by_calls(rewrite_with_dtype),
    aten.atan2.default: _by_calls(rewrite_angle),
    aten.arctan2.default: _by_calls(rewrite_angle),
    aten.copy.default: _copied,
    aten.scaled_dot_product_attention.default: lambda write, node: rewrite_attention(write.call, write.held, node),
    aten.adaptive_avg_pool1d.default: _by_calls(rewrite_adaptive_pooling),
    aten.adaptive_avg_pool2d.default: _by_calls(rewrite_adaptive_pooling),
    aten.adaptive_avg_pool3d.default: _by_calls(rewrite_adaptive_pooling),
    aten.adaptive_max_pool1d.default: _by_calls(rewrite_adaptive_pooling),
    aten.adaptive_max_pool2d.default: _by_calls(rewrite_adaptive_pooling),
    aten.adaptive_max_pool3d.default: _by_calls(rewrite_adaptive_pooling),
    aten.as_strided_scatter.default: _refused,
    aten.diagonal_scatter.default: _refused,
    aten.scatter_reduce.two: _averaged,
    aten.lstm.input: _projected,
    aten.squeeze.default: _squeezed,
    aten.dstack.default: _joined,
    aten.hstack.default: _joined,
    aten.vstack.default: _joined,
    aten.pad.default: _by_calls(rewrite_circular_padding),
    aten.index.Tensor: _selected,
    aten.upsample_bicubic2d.vec: _resized,
    aten.upsample_bilinear2d.vec: _resized,
    aten.upsample_linear1d.vec: lambda _, node: check_resizing(node),
    aten.upsample_trilinear3d.vec: lambda _, node: check_resizing(node),
    aten.upsample_nearest1d.vec: _resized_to_nearest,
    aten.upsample_nearest2d.vec: _resized_to_nearest,
    aten.upsample_nearest3d.vec: _resized_to_nearest,
    **dict.fromkeys(ANTIALIASED, _resized),
    aten.avg_pool1d.default: _by_calls(rewrite_average_pooling),
    aten.avg_pool2d.default: _by_calls(rewrite_average_pooling),
    aten.avg_pool3d.default: _by_calls(rewrite_average_pooling),
    aten.max_pool1d.default: _by_calls(rewrite_max_pooling),
    aten.max_pool2d.default: _by_calls(rewrite_max_pooling),
    aten.max_pool3d.default: _by_calls(rewrite_max_pooling),
    aten.max_pool1d_with_indices.default: _by_calls(rewrite_max_pooling),
    aten.max_pool2d_with_indices.default: _by_calls(rewrite_max_pooling),
    aten.max_pool3d_with_indices.default: _by_calls(rewrite_max_pooling),
}
