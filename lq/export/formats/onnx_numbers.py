"""Arithmetic of tensors and numbers of several types, as torch.onnx (torch 2.15) can translate it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
Call = Callable[..., fx.Node]
"""Writes a call of an operation; see :class:`lq.export.formats.onnx_rewriter.Rewriter`."""


def rewrite_clamp(call: Call, node: fx.Node) -> fx.Node | None:
    """A clamp of floats to a whole number and a fraction; torch.onnx finds no operation that takes both.

    Example:
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> print(calls_for_onnx(lambda x: x.clamp(0, 0.5), torch.ones(2)))
        clamp = aten.clamp.default(x, 0.0, 0.5)
    """
    x: Any = node.args[0]
    given = {**dict(zip(("min", "max"), node.args[1:], strict=False)), **node.kwargs}
    bounds = [given.get(name) for name in ("min", "max")]
    if {type(bound) for bound in bounds} != {int, float} or not x.meta["val"].is_floating_point():
        return None
    return call(node.target, x, *map(float, bounds))  # type: ignore[arg-type]


def rewrite_subtraction(call: Call, node: fx.Node) -> fx.Node | None:
    """``1.0 - mask`` of an integer mask; torch.onnx finds no operation that takes a fraction and integers.

    Example:
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> print(calls_for_onnx(lambda mask: 1.0 - mask, torch.ones(2, dtype=torch.int64)))
        to = aten.to.dtype(mask, torch.float32)
        rsub = aten.rsub.Scalar(to, 1.0)
    """
    x: Any = node.args[0]
    wanted = node.meta["val"].dtype
    if x.meta["val"].dtype == wanted:
        return None
    return call(node.target, call(aten.to.dtype, x, wanted), *node.args[1:], **node.kwargs)


def rewrite_stack(call: Call, node: fx.Node) -> fx.Node | None:
    """A stack of several types, for which torch.onnx writes no conversion.

    Example:
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> print(calls_for_onnx(lambda x, mask: torch.stack([x, mask]), torch.ones(2), torch.ones(2).int()))
        to = aten.to.dtype(x, torch.float32)
        to_1 = aten.to.dtype(mask, torch.float32)
        stack = aten.stack.default([to, to_1])
    """
    tensors: Any = node.args[0]
    wanted = node.meta["val"].dtype
    if all(tensor.meta["val"].dtype == wanted for tensor in tensors):
        return None
    converted = [call(aten.to.dtype, tensor, wanted) for tensor in tensors]
    return call(node.target, converted, *node.args[1:], **node.kwargs)


def rewrite_with_dtype(call: Call, node: fx.Node) -> fx.Node | None:
    """A mean or softmax with a ``dtype``, as of a mask; torch.onnx computes it in the type of its input, as integers.

    Example:
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> print(calls_for_onnx(lambda mask: mask.mean(0, dtype=torch.float32), torch.ones(2).int()))
        to = aten.to.dtype(mask, torch.float32)
        mean = aten.mean.dim(to, [0], dtype=torch.float32)
    """
    x: Any = node.args[0]
    wanted = node.meta["val"].dtype
    if x.meta["val"].dtype == wanted:
        return None
    return call(node.target, call(aten.to.dtype, x, wanted), *node.args[1:], **node.kwargs)


def rewrite_log_sigmoid(call: Call, node: fx.Node) -> fx.Node:
    """``logsigmoid`` as ``-softplus(-x)``; torch.onnx takes the logarithm of a sigmoid, which may be 0 below -18.

    Example:
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> print(calls_for_onnx(lambda x: torch.nn.functional.logsigmoid(x), torch.ones(2)))
        neg = aten.neg.default(x)
        softplus = aten.softplus.default(neg)
        neg_1 = aten.neg.default(softplus)
    """
    turned = call(aten.neg.default, node.args[0])
    return call(aten.neg.default, call(aten.softplus.default, turned))


def rewrite_log_of_sum(call: Call, node: fx.Node) -> fx.Node:
    """``logaddexp`` as the larger number and what the other adds; torch.onnx adds their exponentials, which overflow.

    Example:
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> lines = calls_for_onnx(lambda x, y: torch.logaddexp(x, y), torch.ones(2), torch.ones(2)).splitlines()
        >>> lines[0], lines[-1]  # two infinities have no distance
        ('maximum = aten.maximum.default(x, y)', 'where = aten.where.self(eq, add_1, add)')
    """
    x, y = node.args
    largest = call(aten.maximum.default, x, y)
    distance = call(aten.abs.default, call(aten.sub.Tensor, x, y))
    added = call(aten.add.Tensor, largest, call(aten.softplus.default, call(aten.neg.default, distance)))
    doubled = call(aten.add.Tensor, largest, math.log(2))
    return call(aten.where.self, call(aten.eq.Tensor, x, y), doubled, added)


def rewrite_loss_of_logits(call: Call, node: fx.Node) -> fx.Node:
    """``binary_cross_entropy_with_logits`` with ``softplus(-x)``; torch.onnx takes the logarithm of a sigmoid.

    Example:
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> loss = torch.nn.functional.binary_cross_entropy_with_logits
        >>> print(calls_for_onnx(lambda x, y: loss(x, y), torch.ones(2), torch.ones(2)))
        neg = aten.neg.default(x)
        softplus = aten.softplus.default(neg)
        rsub = aten.rsub.Scalar(y, 1.0)
        mul = aten.mul.Tensor(rsub, x)
        add = aten.add.Tensor(mul, softplus)
        mean = aten.mean.default(add)
    """
    x, target, *others = node.args
    given = dict(zip(("weight", "pos_weight", "reduction"), others, strict=False))
    weight, pos_weight, reduction = (given.get(name) for name in ("weight", "pos_weight", "reduction"))
    missed = call(aten.softplus.default, call(aten.neg.default, x))
    if pos_weight is not None:
        more = call(aten.mul.Tensor, call(aten.sub.Tensor, pos_weight, 1.0), target)
        missed = call(aten.mul.Tensor, call(aten.add.Tensor, more, 1.0), missed)
    loss = call(aten.add.Tensor, call(aten.mul.Tensor, call(aten.rsub.Scalar, target, 1.0), x), missed)
    if weight is not None:
        loss = call(aten.mul.Tensor, loss, weight)
    if reduction == 0:
        return loss
    return call(aten.sum.default if reduction == 2 else aten.mean.default, loss)


def rewrite_angle(call: Call, node: fx.Node) -> fx.Node:
    """``atan2``; that of torch.onnx is -pi, not pi, for ``y = 0`` and negative ``x``, and NaN if both are 0.

    The sign of a zero does not count.

    Example:
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> print(calls_for_onnx(lambda y, x: torch.atan2(y, x), torch.ones(2), torch.ones(2)))
        div = aten.div.Tensor(y, x)
        atan = aten.atan.default(div)
        lt = aten.lt.Scalar(y, 0.0)
        full_like = aten.full_like.default(y, 3.141592653589793)
        where = aten.where.ScalarSelf(lt, -3.141592653589793, full_like)
        lt_1 = aten.lt.Scalar(x, 0.0)
        add = aten.add.Tensor(atan, where)
        where_1 = aten.where.self(lt_1, add, atan)
        eq = aten.eq.Scalar(x, 0.0)
        eq_1 = aten.eq.Scalar(y, 0.0)
        logical_and = aten.logical_and.default(eq, eq_1)
        where_2 = aten.where.ScalarSelf(logical_and, 0.0, where_1)
    """
    wanted = node.meta["val"].dtype
    y, x = (v if v.meta["val"].dtype == wanted else call(aten.to.dtype, v, wanted) for v in node.args)  # type: ignore
    slope = call(aten.atan.default, call(aten.div.Tensor, y, x))
    half = call(aten.where.ScalarSelf, call(aten.lt.Scalar, y, 0.0), -math.pi, call(aten.full_like.default, y, math.pi))
    angle = call(aten.where.self, call(aten.lt.Scalar, x, 0.0), call(aten.add.Tensor, slope, half), slope)
    at_zero = call(aten.logical_and.default, call(aten.eq.Scalar, x, 0.0), call(aten.eq.Scalar, y, 0.0))
    return call(aten.where.ScalarSelf, at_zero, 0.0, angle)
