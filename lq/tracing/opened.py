"""Functions of torch that are one call to a mode, as the calls that they are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _never(*_: Any) -> bool:
    return False


def _without_handover(function: Callable[..., Any]) -> FunctionType:
    """A copy that never hands itself over to a mode, so that the calls that it makes are seen one by one."""
    assert isinstance(function, FunctionType)
    namespace = {**function.__globals__, "has_torch_function": _never}
    opened = FunctionType(function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    r"""``F.scaled_dot_product_attention`` step by step, with its arguments.

    .. math:: \text{softmax}(s \, q k^\top + m) \, v

    The scale follows the product, so that queries and keys are multiplied as they are. Like the original it attends to
    nothing, and returns 0, where a mask leaves no key. It takes the memory of the scores, in training several times.

    Source:
        https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html

    Example:
        >>> q, k, v = torch.rand(3, 1, 2, 4, 8).unbind()
        >>> torch.allclose(attention(q, k, v, is_causal=True), F.scaled_dot_product_attention(q, k, v, is_causal=True))
        True
    """
    if is_causal and attn_mask is not None:  # it says what is wrong with that
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    if enable_gqa:
        key, value = (_for_every_query(one, query.size(-3)) for one in (key, value))
    scores = (query @ key.transpose(-2, -1)) * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool, device=query.device).tril()
    probabilities = F.softmax(scores if attn_mask is None else _masked(scores, attn_mask), dim=-1)
    attended = (F.dropout(probabilities, dropout_p) if dropout_p > 0 else probabilities) @ value
    if attn_mask is None or is_causal:
        return attended
    allowed = attn_mask if attn_mask.dtype == torch.bool else attn_mask != -torch.inf
    return attended.masked_fill(~allowed.any(-1, keepdim=True), 0.0)


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores with a mask, and none of them infinite: a row without a key would become NaN."""
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else (scores + mask).clamp(min=lowest)


def _for_every_query(x: Tensor, heads: int) -> Tensor:
    """Keys or values of grouped queries, repeated for each of those."""
    times = heads // x.size(-3)
    return x.unsqueeze(-3).expand(*x.shape[:-2], times, *x.shape[-2:]).flatten(-4, -3)


OPENED: Mapping[Any, Callable[..., Any]] = {
    F.multi_head_attention_forward: _without_handover(F.multi_head_attention_forward),
}
OPENED_ATTENTION: Mapping[Any, Callable[..., Any]] = {**OPENED, F.scaled_dot_product_attention: attention}
