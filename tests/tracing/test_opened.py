"""Attention and einsum step by step compute what the functions of torch do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lq.tracing.opened import attention, einsum, is_product


def qkv(heads: int = 4, kv_heads: int = 4, queries: int = 5, keys: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, heads, queries, 8), (2, kv_heads, keys, 8), (2, kv_heads, keys, 6))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def some_keys() -> Tensor:
    """A mask that hides all keys of the second sample from its first query."""
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 0] = True
    mask[1, :, 0] = False
    return mask


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "bool mask": {"attn_mask": some_keys()},
    "float mask": {"attn_mask": torch.zeros(2, 1, 5, 7).masked_fill(~some_keys(), -torch.inf)},
    "float mask of a bias": {"attn_mask": torch.linspace(-3, 3, 35).view(5, 7)},
    "lowest finite number": {"attn_mask": torch.zeros(5, 7).masked_fill(~some_keys()[0, 0], torch.finfo().min)},
}


@pytest.mark.parametrize("case", CASES)
def test_attention_computes_what_torch_does(case: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in qkv()]
    ours, theirs = attention(*tensors, **CASES[case]), F.scaled_dot_product_attention(*tensors, **CASES[case])
    torch.testing.assert_close(ours, theirs)  # another order of additions
    weight = torch.linspace(-1, 1, theirs.numel()).view_as(theirs)
    for own, their in zip(
        torch.autograd.grad((ours * weight).sum(), tensors),
        torch.autograd.grad((theirs * weight).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(own, their)


def test_grouped_queries() -> None:
    tensors = qkv(heads=6, kv_heads=2)
    ours = attention(*tensors, enable_gqa=True)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(*tensors, enable_gqa=True))


def test_dropout_keeps_the_mean_and_drops_probabilities() -> None:
    query, key, _ = qkv()
    identity = torch.eye(7).expand(2, 4, 7, 7)  # so that the result is the probabilities
    torch.manual_seed(0)
    dropped = torch.stack([attention(query, key, identity, dropout_p=0.25) for _ in range(400)])
    whole = attention(query, key, identity)
    share = float((dropped == 0).float().mean())
    assert abs(share - 0.25) < 0.01  # 112,000 draws: a standard deviation is 0.0013
    # A probability p has the standard deviation p * sqrt(1/3) over draws; of the mean of 400 that is p / 35.
    torch.testing.assert_close(dropped.mean(0), whole, rtol=0.2, atol=0)


def test_two_masks_are_refused_as_torch_does() -> None:
    with pytest.raises(RuntimeError, match="attn_mask"):
        attention(*qkv(), attn_mask=some_keys(), is_causal=True)


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("b h i d, b h j d -> b h i j", (2, 3, 4, 5), (2, 3, 6, 5)),
        ("bhij,bhjd->bihd", (2, 3, 4, 6), (2, 3, 6, 5)),
        ("bihd,bjhd->bhij", (2, 4, 3, 5), (2, 6, 3, 5)),
        ("bqhd,bkd->bhqk", (2, 4, 3, 5), (2, 6, 5)),  # one head of keys for all queries
        ("bxyd,bzwd->bxyzw", (2, 3, 4, 5), (2, 2, 3, 5)),
        ("ij,jk", (3, 4), (4, 5)),
        ("bcij,bijd->bdc", (2, 3, 4, 5), (2, 4, 5, 6)),
    ],
)
def test_einsum_is_a_product(equation: str, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = torch.randn(left), torch.randn(right)
    assert is_product(equation, a, b)
    torch.testing.assert_close(einsum(equation, a, b), torch.einsum(equation, a, b))
    torch.testing.assert_close(einsum(equation, [a, b]), torch.einsum(equation, a, b))


@pytest.mark.parametrize(
    "operands", [("ii,ij->j",), ("ij,kl->ik",), ("...j,jk->...k",), ("ij->ji",), ("ij,jk,kl->il",)]
)
def test_other_einsums_are_left_alone(operands: tuple[str]) -> None:
    count = operands[0].partition("->")[0].count(",") + 1
    assert not is_product(operands[0], *[torch.ones(2, 2)] * count)
