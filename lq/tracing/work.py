"""How much work an operation is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from lq.tracing.layer_calls import argument

RECURRENT = frozenset(
    {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
)
# Names of the operands by their position; "" is one that is only added.
_PRODUCTS = {
    "matmul": ("input", "other"),
    "mm": ("input", "mat2"),
    "bmm": ("input", "mat2"),
    "addmm": ("", "mat1", "mat2"),
    "baddbmm": ("", "batch1", "batch2"),
    "grouped_mm": ("mat_a", "mat_b"),  # the experts of a mixture: every token by the matrix of its own
    "_grouped_mm": ("self", "mat2"),
}
# Every value of the result is a sum over all axes that are not in it.
_CONTRACTIONS = {"tensordot": ("a", "b"), "inner": ("input", "other"), "mv": ("input", "vec")}
_OPERANDS = {
    **_PRODUCTS,
    **_CONTRACTIONS,
    "linear": ("input", "weight"),
    "deform_conv2d": ("input", "weight"),  # torchvision's
    "bilinear": ("input1", "input2", "weight"),
    "scaled_dot_product_attention": ("query", "key", "value"),
}


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
    if name == "einsum" and isinstance(args[0], str):
        return _einsum(args[0], args[1] if isinstance(args[1], (list, tuple)) else args[1:], out)
    if name in RECURRENT:
        return _recurrent(name, args)
    names = _OPERANDS.get(name)
    if names is None and not name.startswith("conv"):
        return 0
    places = [(i, operand) for i, operand in enumerate(names or ("input", "weight")) if operand]
    operands = [argument(at, args, kwargs) for at in places]
    if not all(isinstance(operand, Tensor) for operand in operands):
        return 0
    if name == "scaled_dot_product_attention":
        query, key, value = operands
        return int(query.numel() * key.shape[-2] + query.numel() // query.shape[-1] * key.shape[-2] * value.shape[-1])
    if name == "bilinear":
        first, second, _ = operands
        return int(out.numel() * first.shape[-1] * second.shape[-1])
    x, weight = operands
    if name in _CONTRACTIONS:
        return math.isqrt(int(x.numel()) * int(weight.numel()) * out.numel())
    if name in _PRODUCTS:
        return out.numel() * int(x.shape[-1])
    return int((x if name.startswith("conv_transpose") else out).numel() * weight[0].numel())


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
