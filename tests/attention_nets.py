"""Networks with attention, in the ways in which people write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS = 16, 2


def torch_function(q: Tensor, k: Tensor, v: Tensor, drop: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=drop)


def by_hand(q: Tensor, k: Tensor, v: Tensor, drop: float) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return F.dropout(scores.softmax(-1), drop) @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor, drop: float) -> Tensor:
    scores = torch.einsum("b h i d, b h j d -> b h i j", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhij,bhjd->bhid", F.dropout(torch.softmax(scores, -1), drop), v)


def by_bmm(q: Tensor, k: Tensor, v: Tensor, drop: float) -> Tensor:
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    bias = torch.zeros(1, q.shape[-2], k.shape[-2])
    scores = torch.baddbmm(bias, flat[0], flat[1].mT, alpha=q.shape[-1] ** -0.5)
    return torch.bmm(F.dropout(scores.softmax(-1), drop), flat[2]).view_as(v)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "torch_function": torch_function,
    "by_hand": by_hand,
    "by_einsum": by_einsum,
    "by_bmm": by_bmm,
}


class Heads(nn.Module):
    """Self-attention."""

    def __init__(self, way: Callable[[Tensor, Tensor, Tensor, float], Tensor], drop: float = 0.0) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.way, self.drop = way, drop

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attended = self.way(q, k, v, self.drop if self.training else 0.0)
        return self.proj(attended.transpose(1, 2).reshape(batch, length, WIDTH))


class Block(nn.Module):
    """Pre-norm, with a residual stream in float."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(WIDTH), attention, nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A classifier of sequences of eight vectors."""

    def __init__(self, *attention: nn.Module) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(8, WIDTH), nn.Parameter(torch.randn(1, 8, WIDTH))
        self.blocks = nn.Sequential(*map(Block, attention))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x) + self.position)).mean(1))


class OfTorch(nn.Module):
    """``nn.MultiheadAttention`` as self-attention."""

    def __init__(self, drop: float = 0.0, **options: Any) -> None:
        super().__init__()
        self.heads, self.options = nn.MultiheadAttention(WIDTH, HEADS, drop, batch_first=True), options

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.heads(x, x, x, **self.options)[0]
        return attended


def transformer(way: str = "torch_function", drop: float = 0.0, blocks: int = 1) -> Transformer:
    torch.manual_seed(0)
    if way == "of_torch":
        return Transformer(*(OfTorch(drop, need_weights=False) for _ in range(blocks)))
    if way == "of_torch_with_weights":
        return Transformer(*(OfTorch(drop) for _ in range(blocks)))
    return Transformer(*(Heads(WAYS[way], drop) for _ in range(blocks)))


ALL_WAYS = [*WAYS, "of_torch", "of_torch_with_weights"]


def sequences(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, 8, 8, generator=torch.Generator().manual_seed(seed))
