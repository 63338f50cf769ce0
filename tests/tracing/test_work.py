from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.backends.prepare import plan_of, prepare


class Net(nn.Module):
    """Something odd, and a layer of 8 x 2 x 4 behind it."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.fc = body, nn.Linear(4, 2)
        self.w, self.three = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4, 4))
        self.lstm, self.cell = nn.LSTM(4, 2, 2, bidirectional=True, batch_first=True), nn.GRUCell(4, 4)
        self.register_buffer("basis", torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self, x))


OF_LSTM = sum(p.numel() for p in nn.LSTM(4, 2, 2, bidirectional=True).parameters() if p.dim() == 2)


@pytest.mark.parametrize(
    ("body", "expected", "name"),
    [
        (lambda n, x: torch.einsum("bi,io->bo", x, n.w), 16, "einsum"),
        (lambda n, x: torch.einsum("...i,io", x, n.w), 16, "einsum"),
        (lambda n, x: torch.einsum("bi,ij,bj->bi", x, n.w, x), 16, "einsum"),
        (lambda n, x: torch.einsum("bi,hio->bho", [x, n.three]).mean(1), 64, "einsum"),
        (lambda n, x: torch.tensordot(x, n.w, 1), 16, "tensordot"),
        (lambda n, x: F.bilinear(x, x, n.three), 64, "bilinear"),
        (lambda n, x: n.w @ x[:4], 16 * 4 / 8, "matmul"),
        (lambda n, x: x @ n.basis, 16, "matmul"),
        (lambda n, x: n.lstm(x[:, None])[0][:, 0], OF_LSTM, "lstm"),
        (lambda n, x: n.cell(x), 12 * 8, "cell"),
    ],
)
def test_what_computes_in_float_is_counted(body: Callable[[Any, Tensor], Tensor], expected: float, name: str) -> None:
    plan = plan_of(prepare(Net(body), example_args=(torch.randn(8, 4),)))
    rows = {row.name: row for row in plan.in_float}
    assert {key: row.work / 8 for key, row in rows.items()} == {name: expected}
    assert plan.share == pytest.approx(8 / (8 + expected), rel=0.5)
    assert all(row.reason for row in rows.values())


def test_what_sums_nothing_is_no_product() -> None:
    plan = plan_of(prepare(Net(lambda n, x: torch.einsum("bi,i->bi", x, n.w[0])), example_args=(torch.randn(8, 4),)))
    assert plan.share == 1
