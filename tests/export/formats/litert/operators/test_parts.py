"""Tensors that are cut and put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.export.formats.litert.ran import in_float, in_litert
from tests.export.nets import images

pytest.importorskip("ai_edge_litert")

OF_INTEGERS: dict[str, Callable[[Tensor], Tensor]] = {
    "computed ones": lambda x: torch.cat([x, x + 1], 1),
    "truth values": lambda x: torch.cat([x, x > 2], 1),
    "floats": lambda x: torch.cat([x, x * 0.5], 1),
    "stacked": lambda x: torch.stack([x, 2 * x], 1),
}


@pytest.mark.parametrize("function", OF_INTEGERS.values(), ids=OF_INTEGERS)
def test_integers_are_put_together_with_others(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    expected, got = in_float(function, torch.arange(6).reshape(2, 3), directory=tmp_path)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


class TwoBranches(nn.Module):
    """The features of two convolutions in one row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.head = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 4, 1), nn.Linear(2 * 36 + 4 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        row = torch.cat([self.left(x).flatten(1), self.right(x).flatten(1)], 1)
        scores: Tensor = self.head(row)
        return scores


def test_flattened_images_are_put_together(tmp_path: Path) -> None:
    ran = in_litert(TwoBranches(), images(4), tmp_path, "litert")
    assert ran.steps(images(16)) <= 1
    assert ran.info["float_operators"] == []
