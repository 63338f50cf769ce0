"""Arithmetic where operands lie in several orders or have several types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.export.formats.litert.ran import in_float
from tests.export.nets import images

pytest.importorskip("ai_edge_litert")

WEIGHT = torch.linspace(-1, 1, 8 * 3 * 9).reshape(8, 3, 3, 3)
SLOPES = torch.linspace(0.1, 0.8, 8)


def convolved(x: Tensor) -> Tensor:
    """An image that lies with its channels last."""
    return F.conv2d(x, WEIGHT, padding=1)


OF_IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "exponents of channels": lambda x: convolved(x).relu() ** SLOPES.reshape(8, 1, 1),
    "computed exponents": lambda x: convolved(x).abs() ** x.mean(1, keepdim=True),
    "powers of a number": lambda x: (2.0 ** convolved(x)).mean((1, 2)),
    "half": lambda x: x * torch.tensor([0.5, 2.0, 3.0], dtype=torch.float16).reshape(3, 1, 1),
    "double": lambda x: (x * torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64).reshape(3, 1, 1)).float(),
    "bfloat16": lambda x: x * torch.tensor([0.5, 2.0, 3.0], dtype=torch.bfloat16).reshape(3, 1, 1),
}


@pytest.mark.parametrize("function", OF_IMAGES.values(), ids=OF_IMAGES)
def test_operands_may_lie_in_other_orders_and_have_other_types(
    function: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    expected, got = in_float(function, images(2), directory=tmp_path)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("function", [torch.add, torch.sub])
def test_multiples_of_integers(function: Callable[..., Tensor], tmp_path: Path) -> None:
    x = torch.arange(6).reshape(2, 3)
    expected, got = in_float(lambda x: function(x, x, alpha=3), x, directory=tmp_path)
    assert torch.equal(got, expected)
