"""Scaled dot-product attention, which computes in float."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lq.export.formats.litert.call import Call, UnsupportedError
from lq.export.formats.litert.file import Size
from lq.export.formats.litert.operators.elementwise import binary, softmax
from lq.export.formats.litert.operators.layers import matmul
from lq.export.formats.litert.tensors import Value

_ADD, _MUL = binary("ADD", "AddOptions"), binary("MUL", "MulOptions")


def attention(call: Call) -> Value:
    """``softmax(query @ key^T * scale + mask) @ value``."""
    if call.get("enable_gqa"):
        raise UnsupportedError(f"{call.name} is attention with grouped queries")
    query, key = call["query"], call["key"]
    rows, columns = call.net.shape(query)[-2], call.net.shape(key)[-2]
    within = replace(call, grid=None, shape=(*call.shape[:-2], rows, columns))
    rank = len(call.shape)

    def step(name: str, **arguments: object) -> Call:
        return replace(within, name=f"{call.name}/{name}", arguments=arguments)

    turned = call.net.permute(key, [*range(rank - 2), rank - 1, rank - 2])
    scale = call.get("scale") or 1 / math.sqrt(call.net.lengths(query)[-1])
    scores = _MUL(step("scale", self=matmul(step("scores", self=query, other=turned)), other=float(scale)))
    mask = _mask(call, rows, columns)
    if mask is not None:
        scores = _ADD(step("mask", self=scores, other=mask))
    weights = softmax(step("softmax", self=scores, dim=-1))
    return matmul(replace(call, grid=None, arguments={"self": weights, "other": call["value"]}))


def _mask(call: Call, rows: Size, columns: Size) -> Tensor | Value | None:
    """What is added to the scores."""
    given = call.get("attn_mask")
    if call.get("is_causal"):
        given = torch.ones(rows.length, columns.length, dtype=torch.bool).tril()
    if isinstance(given, Value) and call.net.of(given).dtype == "bool":
        raise UnsupportedError(f"{call.name} has a mask of true and false that is computed from its inputs")
    if isinstance(given, Tensor) and given.dtype == torch.bool:
        return torch.zeros(given.shape).masked_fill(~given, torch.finfo(torch.float32).min / 2)
    assert given is None or isinstance(given, (Tensor, Value))
    return given
