"""Scaled dot-product attention, which computes in float."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lq.export.formats.litert.call import OperatorCall, UnsupportedError
from lq.export.formats.litert.file import Size
from lq.export.formats.litert.operators.activations import softmax
from lq.export.formats.litert.operators.elementwise import binary, comparison
from lq.export.formats.litert.operators.layers import matmul
from lq.export.formats.litert.operators.reductions import reduced
from lq.export.formats.litert.tensors import Value

_ADD, _SUB, _MUL = (binary(kind.upper(), f"{kind}Options") for kind in ("Add", "Sub", "Mul"))
_MAXIMUM = binary("MAXIMUM", "MaximumMinimumOptions", fused=False)
_UNREAD = torch.finfo(torch.float32).min / 2  # added to the score of what a mask leaves out


def attention(call: OperatorCall) -> Value:
    """``softmax(query @ key^T * scale + mask) @ value``, which is 0 where a mask leaves nothing to attend to.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> from torch.nn import functional as F
        >>> x = torch.zeros(1, 5, 4)
        >>> print(listing_of(F.scaled_dot_product_attention, q=x, k=x, v=x))
        scaled_dot_product_attention/scores: float32 [1, 5, 5] = BATCH_MATMUL(q, k, adjY=True)
        scaled_dot_product_attention/scale: float32 [1, 5, 5] = MUL(scaled_dot_product_attention/scores, 0.5)
        scaled_dot_product_attention/softmax: float32 [1, 5, 5] = SOFTMAX(scaled_dot_product_attention/scale, beta=1.0)
        scaled_dot_product_attention: float32 [1, 5, 4] = BATCH_MATMUL(scaled_dot_product_attention/softmax, v)
    """
    if call.get("enable_gqa"):
        raise UnsupportedError(f"{call.name} is attention with grouped queries")
    query, key = call["query"], call["key"]
    rows, columns = call.net.shape(query)[-2], call.net.shape(key)[-2]
    within = replace(call, grid=None, shape=(*call.shape[:-2], rows, columns))
    rank = len(call.shape)

    def step(name: str, **arguments: object) -> OperatorCall:
        return replace(within, name=f"{call.name}/{name}", arguments=arguments)

    turned = call.net.permute(key, [*range(rank - 2), rank - 1, rank - 2])
    given = call.get("scale")
    scale = 1 / math.sqrt(call.net.lengths(query)[-1]) if given is None else given
    scores = _MUL(step("scale", self=matmul(step("scores", self=query, other=turned)), other=float(scale)))
    mask = call.get("attn_mask")
    if call.get("is_causal"):
        mask = torch.ones(rows.length, columns.length, dtype=torch.bool).tril()
    if mask is not None:
        scores = _ADD(step("mask", self=scores, other=_added(call, mask)))
    weights = softmax(step("softmax", self=scores, dim=-1))
    made = matmul(replace(call, grid=None, arguments={"self": weights, "other": call["value"]}))
    read = None if mask is None else _reads(call, mask)
    return made if read is None else _MUL(replace(call, grid=None, arguments={"self": made, "other": read}))


def _added(call: OperatorCall, mask: Tensor | Value) -> Tensor | Value:
    """What is added to the scores: numbers that are finite, as a row of others has no softmax."""
    if isinstance(mask, Tensor):
        return torch.zeros(mask.shape).masked_fill(~mask, _UNREAD) if mask.dtype == torch.bool else mask.clamp(_UNREAD)
    own = replace(call, grid=None, name=f"{call.name}/added", shape=call.net.shape(mask))
    if call.net.of(mask).dtype != "bool":
        limited: Value = _MAXIMUM(replace(own, arguments={"self": mask, "other": _UNREAD}))
        return limited
    truth = {"self": call.net.cast(mask, "float32"), "other": 1.0}
    below = _SUB(replace(own, name=f"{call.name}/unread", arguments=truth))  # 0 where it is read, -1 elsewhere
    added: Value = _MUL(replace(own, arguments={"self": below, "other": -_UNREAD}))
    return added


def _reads(call: OperatorCall, mask: Tensor | Value) -> Tensor | Value | None:
    """1 for each row that a mask leaves something of, and 0 for others; ``None`` if there are no others."""
    if isinstance(mask, Tensor):
        reads = (mask if mask.dtype == torch.bool else mask != -math.inf).any(-1, keepdim=True)
        return None if reads.all() else reads.float()
    shape = call.net.shape(mask)
    own = replace(call, grid=None, name=f"{call.name}/reads", shape=(*shape[:-1], Size(1)))
    is_bool = call.net.of(mask).dtype == "bool"
    most = reduced(own, "REDUCE_MAX", call.net.cast(mask, "float32"), [len(shape) - 1], keep=True)
    if is_bool:
        return most
    lowest = torch.finfo(torch.float32).min
    finite = comparison("GREATER_EQUAL")(replace(own, arguments={"self": most, "other": lowest}))
    return call.net.cast(finite, "float32")
