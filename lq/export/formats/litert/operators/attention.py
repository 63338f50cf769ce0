"""Scaled dot-product attention, which computes in float."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lq.export.formats.litert.call import OperatorCall, UnsupportedError
from lq.export.formats.litert.file import Size
from lq.export.formats.litert.operators.elementwise import binary, softmax
from lq.export.formats.litert.operators.layers import matmul
from lq.export.formats.litert.tensors import Value

_ADD, _SUB, _MUL = (binary(kind.upper(), f"{kind}Options") for kind in ("Add", "Sub", "Mul"))
_UNREAD = torch.finfo(torch.float32).min / 2  # added to the score of what a mask leaves out


def attention(call: OperatorCall) -> Value:
    """``softmax(query @ key^T * scale + mask) @ value``."""
    if call.get("enable_gqa"):
        raise UnsupportedError(f"{call.name} is attention with grouped queries")
    query, key = call["query"], call["key"]
    rows, columns = call.net.shape(query)[-2], call.net.shape(key)[-2]
    within = replace(call, grid=None, shape=(*call.shape[:-2], rows, columns))
    rank = len(call.shape)

    def step(name: str, **arguments: object) -> OperatorCall:
        return replace(within, name=f"{call.name}/{name}", arguments=arguments)

    turned = call.net.permute(key, [*range(rank - 2), rank - 1, rank - 2])
    scale = call.get("scale") or 1 / math.sqrt(call.net.lengths(query)[-1])
    scores = _MUL(step("scale", self=matmul(step("scores", self=query, other=turned)), other=float(scale)))
    mask = _mask(call, rows, columns)
    if mask is not None:
        scores = _ADD(step("mask", self=scores, other=mask))
    weights = softmax(step("softmax", self=scores, dim=-1))
    return matmul(replace(call, grid=None, arguments={"self": weights, "other": call["value"]}))


def _mask(call: OperatorCall, rows: Size, columns: Size) -> Tensor | Value | None:
    """What is added to the scores."""
    given = call.get("attn_mask")
    if call.get("is_causal"):
        given = torch.ones(rows.length, columns.length, dtype=torch.bool).tril()
    if isinstance(given, Value) and call.net.of(given).dtype == "bool":
        read = replace(call, grid=None, shape=call.net.shape(given))
        truth = {"self": call.net.cast(given, "float32"), "other": 1.0}
        below = _SUB(replace(read, name=f"{call.name}/unread", arguments=truth))  # 0 where it is read, -1 elsewhere
        added: Value = _MUL(replace(read, name=f"{call.name}/added", arguments={"self": below, "other": -_UNREAD}))
        return added
    if isinstance(given, Tensor) and given.dtype == torch.bool:
        return torch.zeros(given.shape).masked_fill(~given, _UNREAD)
    assert given is None or isinstance(given, (Tensor, Value))
    return given
