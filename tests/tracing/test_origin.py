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


class PoolsOnce(Pools):
    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.layer(x), 4)


def test_a_call_of_unknown_number_has_a_line_if_there_is_no_other() -> None:
    once, twice = (calibrated(net, example_of(torch.rand(4, 3, 8, 8))) for net in (PoolsOnce(), Pools()))
    assert "`return F.adaptive_avg_pool2d(self.layer(x), 4)`" in line_of_call(once, "adaptive_avg_pool2d", None)
    assert line_of_call(twice, "adaptive_avg_pool2d", None) == line_of_call(once, "no_such_operation", None) == ""
