"""Activations of tensors that lie in several orders."""

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


PRELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "slopes of channels": lambda x: F.prelu(convolved(x), SLOPES),
    "slopes of what the batch was": lambda x: F.prelu(convolved(x).transpose(0, 1), torch.tensor([0.1, 0.2])),
    "slopes of columns": lambda x: F.prelu(x[:, 0, 0].t(), torch.tensor([0.1, 0.2])),
}


@pytest.mark.parametrize("function", PRELUS.values(), ids=PRELUS)
def test_each_channel_has_its_slope_however_it_lies(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    expected, got = in_float(function, images(2), directory=tmp_path)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
