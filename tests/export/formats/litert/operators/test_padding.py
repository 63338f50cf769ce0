"""Windows over what is no batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.export.formats.litert.call import UnsupportedError
from tests.export.formats.litert.ran import in_float, in_litert
from tests.export.nets import images

pytest.importorskip("ai_edge_litert")

WITHOUT_BATCH: dict[str, Callable[[Tensor], Tensor]] = {
    "conv2d": lambda x: F.conv2d(x[0], torch.ones(2, 3, 1, 1)),
    "conv_transpose2d": lambda x: F.conv_transpose2d(x[0], torch.ones(3, 2, 1, 1)),
    "max_pool2d": lambda x: F.max_pool2d(x[0], 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x[0], 2),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x[0], 1),
}


@pytest.mark.parametrize(("name", "function"), WITHOUT_BATCH.items(), ids=WITHOUT_BATCH)
def test_a_tensor_without_a_batch_is_refused(name: str, function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    x = torch.randn(1, 3, 3, 3)  # of as many rows as channels, so that one can be taken for the other
    with pytest.raises(UnsupportedError, match=rf"{name} reads a tensor without a batch. Give it x.unsqueeze\(0\)"):
        in_float(function, x, directory=tmp_path)


class AveragesOne(nn.Module):
    """An int8 average of what has no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.second(F.avg_pool2d(self.first(x).squeeze(0), 2).unsqueeze(0))
        return made


def test_a_tensor_without_a_batch_is_refused_on_integers_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="avg_pool2d reads a tensor without a batch"):
        in_litert(AveragesOne(), images(1), tmp_path, "litert")
