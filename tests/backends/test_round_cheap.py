from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.backends.prepare import plan_of, prepare


class Rows(nn.Module):
    """Two cheap operations in a row between convolutions, and two that lead to the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.hardswish(self.first(x)), 1)
        return torch.sigmoid(F.hardswish(self.second(x)))


def rounded(preset: str) -> list[str]:
    prepared = prepare(Rows(), preset, example_args=(torch.rand(2, 3, 8, 8),))
    return [tensor.after for tensor in plan_of(prepared).tensors]


def test_the_preset_litert_rounds_behind_every_cheap_operation_between_int8_layers() -> None:
    assert rounded("x86_vnni") == ["x", "first", "adaptive_avg_pool2d", "second"]
    assert rounded("litert") == ["x", "first", "hardswish", "adaptive_avg_pool2d", "second"]
