"""Attention that torch.onnx has no translation of, or whose masks it takes in another way than PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
Write = Callable[..., fx.Node]


def rewrite_attention(write: Write, held: Callable[[fx.Node], Tensor | None], node: fx.Node) -> fx.Node | None:
    """Attention of four dimensions, which is 0 where a mask leaves nothing to attend to, as PyTorch's is.

    torch.onnx takes four dimensions: those of three have no heads, and those of more are as over windows. Of a row that
    is masked as a whole it makes the mean of all values, or no numbers.

    Args:
        write: to write calls.
        held: the tensor that a node stands for, if it is a constant.
        node: a call of ``scaled_dot_product_attention``.

    Returns:
        the result, or ``None`` where the call can stay.

    Example:
        >>> from torch.nn.functional import scaled_dot_product_attention
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> x, mask = torch.ones(1, 1, 2, 4), torch.ones(2, 2).bool()
        >>> print(calls_for_onnx(lambda x, mask: scaled_dot_product_attention(x, x, x, mask), x, mask))
        scaled_dot_product_attention = aten.scaled_dot_product_attention.default(x, x, x, attn_mask=mask)
        any = aten.any.dim(mask, -1, True)
        logical_not = aten.logical_not.default(any)
        masked_fill = aten.masked_fill.Scalar(scaled_dot_product_attention, logical_not, 0.0)
    """
    query, key, value, *others = node.args
    factors: tuple[Any, ...] = (query, key, value)
    shapes = [factor.meta["val"].shape for factor in factors]
    mask = others[0] if others else node.kwargs.get("attn_mask")
    kwargs = {**dict(zip(("dropout_p", "is_causal"), others[1:], strict=False)), **node.kwargs, "attn_mask": mask}
    made: fx.Node | None = None
    if {len(shape) for shape in shapes} == {3}:
        made = _with_one_head(write, factors, dict(kwargs))
    elif len(shapes[0]) > 4 and all(shape[:-2] == shapes[0][:-2] for shape in shapes):
        made = _with_one_batch(write, factors, dict(kwargs))
    if not isinstance(mask, fx.Node) or _reads_all_rows(held(mask)):
        return made
    made = made or write(aten.scaled_dot_product_attention.default, *factors, **kwargs)
    read = mask if mask.meta["val"].dtype == torch.bool else write(aten.ne.Scalar, mask, -math.inf)
    unread = write(aten.logical_not.default, write(aten.any.dim, read, -1, True))
    return write(aten.masked_fill.Scalar, made, unread, 0.0)


def _reads_all_rows(mask: Tensor | None) -> bool:
    """Whether a constant mask leaves something to attend to in each row."""
    if mask is None:
        return False
    read = mask if mask.dtype == torch.bool else mask != -math.inf
    return bool(read.any(-1).all())


def _with_one_head(write: Write, factors: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
    mask = kwargs["attn_mask"]
    if isinstance(mask, fx.Node) and mask.meta["val"].dim() == 3:
        kwargs["attn_mask"] = write(aten.unsqueeze.default, mask, 1)
    factors = tuple(write(aten.unsqueeze.default, factor, 1) for factor in factors)
    out = write(aten.scaled_dot_product_attention.default, *factors, **kwargs)
    return write(aten.squeeze.dim, out, 1)


def _with_one_batch(write: Write, factors: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node | None:
    """All dimensions in front of the heads as one."""
    mask, leading = kwargs["attn_mask"], factors[0].meta["val"].shape[:-3]
    last, inner = len(leading) - 1, factors[0].meta["val"].shape[1:-1]
    if not all(isinstance(size, int) for size in inner):
        return None
    if isinstance(mask, fx.Node) and mask.meta["val"].dim() > 3:
        given = mask.meta["val"].shape[:-3]
        if given != leading and any(size != 1 for size in given):
            return None
        kwargs["attn_mask"] = write(aten.flatten.using_ints, mask, 0, len(given) - 1)
    flat = (write(aten.flatten.using_ints, factor, 0, last) for factor in factors)
    out = write(aten.scaled_dot_product_attention.default, *flat, **kwargs)
    return write(aten.reshape.default, out, [-1, *inner, factors[2].meta["val"].shape[-1]])
