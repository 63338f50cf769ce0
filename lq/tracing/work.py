"""How much work an operation is."""

from __future__ import annotations

from typing import Any

from torch import Tensor


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
    if not isinstance(weight, Tensor):
        return 0
    if name.startswith("conv_transpose"):
        return int(args[0].numel() * weight[0].numel())
    if name == "linear" or name.startswith("conv"):
        return int(out.numel() * weight[0].numel())
    return 0
