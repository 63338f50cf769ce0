from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.tracing.origin import line_of_call
from tests.export.nets import calibrated, example_of


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.layer(x), 4)
        return F.adaptive_avg_pool2d(x, (2, 1))


def test_each_call_has_its_line() -> None:
    graph = calibrated(Pools(), example_of(torch.rand(4, 3, 8, 8)))
    lines = [line_of_call(graph, "adaptive_avg_pool2d", number) for number in range(3)]
    assert lines[0].endswith("in forward: `x = F.adaptive_avg_pool2d(self.layer(x), 4)`")
    assert lines[0].startswith(f"{__file__}:")
    assert lines[1].endswith("in forward: `return F.adaptive_avg_pool2d(x, (2, 1))`")
    assert lines[2] == ""
    assert line_of_call(graph, "no_such_operation") == ""
