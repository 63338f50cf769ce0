"""Users of einops: its layers, its functions, and weights that it multiplies."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from tests.zoo.entry import Entry, Inputs, images


def entries() -> Iterable[Entry]:
    """A ViT and a mixer by layers, attention by functions, EinMix, and pack with unpack."""
    pictures: Callable[[], Inputs] = lambda: ((images(),), {})  # noqa: E731
    sequence: Callable[[], Inputs] = lambda: ((torch.randn(2, 7, 32),), {})  # noqa: E731
    yield Entry("einops patches by Rearrange", "einops", _mixer, pictures, kind="transformer")
    yield Entry("einops attention by rearrange", "einops", Attention, sequence, kind="transformer")
    yield Entry("einops EinMix", "einops", _einmix, sequence, kind="other", notes="its product is an einsum")
    yield Entry("einops pack and unpack", "einops", Packed, sequence, kind="transformer")
    yield Entry("einops Reduce after convolutions", "einops", _reduced, pictures)


def _mixer() -> nn.Module:
    from einops.layers.torch import Rearrange, Reduce

    return nn.Sequential(
        Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=8, q=8),
        nn.Linear(192, 32),
        nn.LayerNorm(32),
        Rearrange("b n c -> b c n"),
        nn.Linear(16, 16),
        nn.GELU(),
        Rearrange("b c n -> b n c"),
        nn.Linear(32, 32),
        nn.GELU(),
        Reduce("b n c -> b c", "mean"),
        nn.Linear(32, 10),
    )


class Attention(nn.Module):
    """The attention of many repositories."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv, self.to_out, self.norm = nn.Linear(32, 96, bias=False), nn.Linear(32, 32), nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        from einops import rearrange

        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=4) for t in self.to_qkv(self.norm(x)).chunk(3, dim=-1))
        weights = torch.einsum("b h i d, b h j d -> b h i j", q * 8**-0.5, k).softmax(-1)
        out = torch.einsum("b h i j, b h j d -> b h i d", weights, v)
        return x + self.to_out(rearrange(out, "b h n d -> b n (h d)"))


def _einmix() -> nn.Module:
    from einops.layers.torch import EinMix

    return nn.Sequential(
        EinMix("b n c -> b n d", weight_shape="c d", bias_shape="d", c=32, d=16), nn.GELU(), nn.Linear(16, 10)
    )


class Packed(nn.Module):
    """Puts a class token before the sequence, and takes both apart again."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.body, self.head = nn.Parameter(torch.randn(32)), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        from einops import pack, repeat, unpack

        token = repeat(self.token, "d -> b d", b=x.shape[0])
        together, shapes = pack([token, x], "b * d")
        first, rest = unpack(torch.relu(self.body(together)), shapes, "b * d")
        return self.head(first), rest


def _reduced() -> nn.Module:
    from einops.layers.torch import Reduce

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Reduce("b c (h p) (w q) -> b c h w", "max", p=2, q=2),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        Reduce("b c h w -> b c", "mean"),
        nn.Linear(16, 10),
    )
