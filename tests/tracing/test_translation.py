"""A batch that is joined and taken apart again, in files of another batch size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lq
from tests.tiny import quicken_deployment


class Stages(nn.Module):
    """Computes several tensors as one batch, and takes that apart."""

    def __init__(self, take_apart: Callable[[Tensor, int], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.take_apart, self.first, self.last = take_apart, nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        joined = self.first(torch.cat([x, 2 * x, -x]))
        one, two, three = self.take_apart(joined, x.shape[0])
        return self.last(one * two + three)


@pytest.mark.parametrize(
    "take_apart", [lambda x, size: x.split(size), lambda x, size: x.chunk(3, 0)], ids=["split", "chunk"]
)
def test_a_batch_that_is_taken_apart_stays_open(
    take_apart: Callable[[Tensor, int], tuple[Tensor, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken_deployment(monkeypatch)
    torch.manual_seed(0)
    x, more = torch.randn(4, 8), torch.randn(3, 8)
    prepared = lq.prepare(Stages(take_apart), example_args=(x,))
    lq.calibrate(prepared, [x])
    lq.export_artifact(prepared, [x], tmp_path / "int8", ["torch", "pt2"])
    expected = prepared.eval()(more)
    for kind in ("torch", "pt2"):
        torch.testing.assert_close(lq.load(tmp_path / "int8", kind)(more), expected, rtol=0, atol=1e-4)
