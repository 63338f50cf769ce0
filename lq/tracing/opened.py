"""Functions of torch that are one call to a mode, as the calls that they are made of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lq.compat.torch_private import without_torch_functions
from lq.tracing.functions import operation
from lq.tracing.recurrence import RECURRENT, has_steps, steps_of


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
    if is_causal and attn_mask is not None:
        with without_torch_functions():  # it says what is wrong with that
            return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal)
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


def einsum(equation: str, *operands: Any) -> Tensor:
    """``torch.einsum`` of two tensors as one ``matmul``, for which runtimes have int8 kernels.

    Args:
        equation: one for which :func:`is_product` holds.
        operands: two tensors, or a list of them.

    Example:
        >>> q, k = torch.rand(2, 4, 3, 8), torch.rand(2, 5, 3, 8)
        >>> torch.allclose(einsum("b i h d, b j h d -> b h i j", q, k), torch.einsum("bihd,bjhd->bhij", q, k))
        True
    """
    first, second = operands[0] if isinstance(operands[0], (list, tuple)) else operands
    left, right, out = _terms(equation)
    batch = [name for name in out if name in left and name in right]
    rows, columns = ([name for name in out if name in term and name not in batch] for term in (left, right))
    summed = [name for name in left if name in right and name not in batch]
    product = _grouped(first, left, (batch, rows, summed)) @ _grouped(second, right, (batch, summed, columns))
    sizes = dict(zip(left, first.shape, strict=True)) | dict(zip(right, second.shape, strict=True))
    made = [*batch, *rows, *columns]
    if len(rows) != 1 or len(columns) != 1:
        product = product.reshape([sizes[name] for name in made])
    order = [made.index(name) for name in out]
    return product if order == sorted(order) else product.permute(order)


def distances(
    x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist_if_necessary"
) -> Tensor:
    """``torch.cdist``, which makes a constant of the batch size, of operations that do not.

    Example:
        >>> x, few, many = torch.rand(2, 3, 4), torch.rand(5, 4), torch.rand(50, 4)
        >>> [torch.allclose(distances(x, codes), torch.cdist(x, codes), atol=1e-3) for codes in (few, many)]
        [True, True]
    """
    if p != 2:
        with without_torch_functions():
            return torch.cdist(x1, x2, p, compute_mode)
    if isinstance(x2.shape[-2], int) and x2.shape[-2] <= 25:  # torch computes products of matrices above
        return (x1.unsqueeze(-2) - x2.unsqueeze(-3)).square().sum(-1).sqrt()
    squares = x1.square().sum(-1, keepdim=True) + x2.square().sum(-1).unsqueeze(-2)
    return (squares - 2 * (x1 @ x2.transpose(-2, -1))).clamp(min=0).sqrt()


def is_product(equation: Any, *operands: Any) -> bool:
    """Whether an einsum is one product of two tensors, without diagonals, sums over one of them, or an ellipsis.

    Example:
        >>> x = torch.ones(2, 2)
        >>> [is_product(text, x, x) for text in ("ij,jk->ik", "ij,jk", "ii,ij->j", "ij,kl->ik", "...j,jk->...k")]
        [True, True, False, False, False]
    """
    given = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    if not isinstance(equation, str) or "." in equation or len(given) != 2:
        return False
    left, right, out = _terms(equation)
    apart = set(left) ^ set(right)
    return apart <= set(out) and all(len(set(term)) == len(term) for term in (left, right, out))


def _terms(equation: str) -> tuple[str, str, str]:
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    left, right = inputs.split(",")
    return left, right, out if arrow else "".join(sorted(set(left) ^ set(right)))


def _grouped(x: Tensor, term: str, groups: tuple[list[str], ...]) -> Tensor:
    """With its dimensions in the order of some groups, each group but the first flattened to one."""
    order = [term.index(name) for group in groups for name in group]
    x = x if order == sorted(order) else x.permute(order)
    if all(len(group) == 1 for group in groups[1:]):
        return x
    batch = list(x.shape[: len(groups[0])])
    sizes = [math.prod(x.shape[x_at] for x_at in at) for at in _positions(groups)]
    return x.reshape([*batch, *sizes])


def _positions(groups: tuple[list[str], ...]) -> list[range]:
    ends = [sum(map(len, groups[: i + 1])) for i in range(len(groups))]
    return [range(start, end) for start, end in itertools.pairwise(ends)]


OPENED: Mapping[Any, Callable[..., Any]] = {
    F.multi_head_attention_forward: _without_handover(F.multi_head_attention_forward),
}
# Only while a graph is made.
EXPORTED: Mapping[Any, Callable[..., Any]] = {torch.cdist: distances}
# Only where attention, or recurrence, is quantized.
_ATTENTION: Mapping[Any, Callable[..., Any]] = {F.scaled_dot_product_attention: attention, torch.einsum: einsum}
_STEPS: Mapping[Any, Callable[..., Any]] = {**_ATTENTION, **RECURRENT}
OPENABLE: Mapping[Any, str] = {func: operation(func) for func in _STEPS}  # torch.compile cannot ask for names
OF_RECURRENCE = frozenset(OPENABLE[func] for func in RECURRENT)


def number_of_steps(func: Any, args: Any) -> int:
    """Of a recurrent call, which is planned for so many; 0 for others.

    Example:
        >>> number_of_steps(torch.gru_cell, ()), number_of_steps(torch.einsum, ())
        (1, 0)
    """
    return steps_of(func, args) if func in RECURRENT else 0


def step_by_step(func: Any, args: Any) -> Callable[..., Any] | None:
    """What computes a call of one of the :data:`OPENABLE` functions step by step, if that is possible.

    Example:
        >>> x = torch.ones(2, 2)
        >>> step_by_step(torch.einsum, ("ij,jk", x, x)) is einsum, step_by_step(torch.einsum, ("ii,ij->j", x, x))
        (True, None)
    """
    if func in RECURRENT and not has_steps(func, *args):
        return None
    return None if func is torch.einsum and not is_product(*args) else _STEPS[func]
