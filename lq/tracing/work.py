"""How much work an operation is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

RECURRENT = frozenset(
    {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
)
# Every value of the result is a sum over all axes that are not in it.
_CONTRACTIONS = frozenset({"tensordot", "inner", "mv"})


def multiply_accumulates(name: str, args: Any, kwargs: Any, out: Tensor) -> int:
    """How many multiply-accumulates a layer or a product of matrices takes; 0 for other operations.

    Args:
        name: of the operation.
        args: of the call.
        kwargs: of the call.
        out: its result.

    Example:
        >>> import torch
        >>> x, weight = torch.ones(3, 4), torch.ones(2, 4)
        >>> multiply_accumulates("linear", (x, weight), {}, x @ weight.T)
        24
        >>> multiply_accumulates("einsum", ("bi,oi->bo", x, weight), {}, x @ weight.T)
        24
    """
    weight = args[1] if len(args) > 1 else kwargs.get("weight")
    if name == "addmm":
        return out.numel() * int(args[1].shape[1])
    if name in ("matmul", "bmm", "mm") and isinstance(weight, Tensor):
        return out.numel() * int(args[0].shape[-1])
    if name == "baddbmm":
        return out.numel() * int(args[1].shape[-1])
    if name == "scaled_dot_product_attention":
        query, key, value = (args[i] if i < len(args) else kwargs[n] for i, n in enumerate(("query", "key", "value")))
        return int(query.numel() * key.shape[-2] + query.numel() // query.shape[-1] * key.shape[-2] * value.shape[-1])
    if name == "einsum" and isinstance(args[0], str):
        return _einsum(args[0], args[1] if isinstance(args[1], (list, tuple)) else args[1:], out)
    if name in RECURRENT:
        return _recurrent(name, args)
    if not isinstance(weight, Tensor):
        return 0
    if name in _CONTRACTIONS:
        return math.isqrt(int(args[0].numel()) * int(weight.numel()) * out.numel())
    if name == "bilinear":
        return out.numel() * int(weight.shape[-1] * args[0].shape[-1])
    if name.startswith("conv_transpose"):
        return int(args[0].numel() * weight[0].numel())
    if name == "linear" or name.startswith("conv"):
        return int(out.numel() * weight[0].numel())
    return 0


def _einsum(equation: str, operands: Any, out: Tensor) -> int:
    """As one sum of products over all names that are not in the result; 0 where there is nothing to sum."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    terms, sizes = given.split(","), dict[str, int]()
    for term, tensor in zip(terms, operands, strict=True):
        head, _, tail = term.partition("...")
        sizes.update(zip(head, tensor.shape, strict=False))
        sizes.update(zip(reversed(tail), reversed(tensor.shape), strict=False))
    summed = [size for name, size in sizes.items() if (name not in result if arrow else given.count(name) > 1)]
    return out.numel() * math.prod(summed) if len(terms) > 1 and summed else 0


def _recurrent(name: str, args: Any) -> int:
    """Every step of a sequence, packed or not, multiplies by all matrices of all layers."""
    weights: Iterable[Tensor] = args[2:4]
    if not name.endswith("_cell"):
        weights = next(value for value in reversed(args) if isinstance(value, (list, tuple)))
    steps = int(args[0].numel() // args[0].shape[-1])
    return steps * sum(weight.numel() for weight in weights if weight.dim() == 2)
