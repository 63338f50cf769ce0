"""Operations that write in training only, or that fx has no name for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lq


class AddsInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x)
        y += x
        z: Tensor = self.third(torch.relu_(y))
        return z


def _dropping() -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5, inplace=True), nn.Flatten(), nn.Linear(4, 2))
    return nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), *head)


@pytest.mark.parametrize("build", [AddsInPlace, _dropping])
@pytest.mark.parametrize("with_example", [True, False])
def test_gradients_survive_what_is_written_in_place(build: type[nn.Module], with_example: bool) -> None:
    x = torch.randn(2, 4, 8, 8)
    prepared = lq.prepare(build(), "portable", (x,) if with_example else None)
    lq.set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    for _ in range(2):
        prepared.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in prepared.parameters())
