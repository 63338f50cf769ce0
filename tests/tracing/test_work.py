from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.backends.prepare import plan_of, prepare
from lq.tracing.work import multiply_accumulates


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


def _multiplies_groups() -> bool:
    try:
        torch._grouped_mm(torch.ones(8, 4), torch.ones(1, 4, 4), torch.tensor([8], dtype=torch.int32))
    except (AttributeError, RuntimeError):
        return False
    return True


GROUPED = _multiplies_groups()
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
        pytest.param(
            lambda n, x: torch._grouped_mm(x, n.three, torch.tensor([1, 3, 4, 8], dtype=torch.int32)),
            16,
            "_grouped_mm",
            marks=pytest.mark.skipif(not GROUPED, reason="this version of PyTorch multiplies no groups of floats"),
        ),
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


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "shape", "expected"),
    [
        (
            "baddbmm",
            (torch.ones(2, 3, 3),),
            {"batch1": torch.ones(2, 3, 4), "batch2": torch.ones(2, 4, 3)},
            (2, 3, 3),
            2 * 3 * 3 * 4,
        ),
        ("addmm", (torch.ones(3),), {"mat1": torch.ones(2, 4), "mat2": torch.ones(4, 3)}, (2, 3), 2 * 3 * 4),
        ("matmul", (torch.ones(2, 4),), {"other": torch.ones(4, 3)}, (2, 3), 2 * 3 * 4),
        ("mm", (torch.ones(2, 4),), {"mat2": torch.ones(4, 3)}, (2, 3), 2 * 3 * 4),
        ("linear", (), {"input": torch.ones(2, 4), "weight": torch.ones(3, 4)}, (2, 3), 2 * 3 * 4),
        (
            "conv_transpose2d",
            (),
            {"input": torch.ones(1, 2, 5, 5), "weight": torch.ones(2, 3, 2, 2)},
            (1, 3, 6, 6),
            50 * 3 * 4,
        ),
        (
            "bilinear",
            (),
            {"input1": torch.ones(2, 4), "input2": torch.ones(2, 5), "weight": torch.ones(3, 4, 5)},
            (2, 3),
            6 * 20,
        ),
        ("add", (torch.ones(2), torch.ones(2)), {}, (2,), 0),
    ],
)
def test_operands_may_be_keywords(name: str, args: Any, kwargs: Any, shape: Any, expected: int) -> None:
    assert multiply_accumulates(name, args, kwargs, torch.ones(shape)) == expected


def test_a_product_that_is_called_by_keywords_is_planned() -> None:
    class Alibi(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return torch.baddbmm(x, batch1=y, batch2=y.mT @ y)

    assert plan_of(prepare(Alibi(), example_args=(torch.randn(2, 3, 4),))).layers[0].name == "layer"


class Deformable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        ops = pytest.importorskip("torchvision.ops")
        self.offset, self.deformed = nn.Conv2d(2, 18, 3, padding=1), ops.DeformConv2d(2, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.deformed(x, self.offset(x))
        return y


def test_a_deformable_convolution_is_counted_as_a_convolution() -> None:
    plan = plan_of(prepare(Deformable(), example_args=(torch.randn(1, 2, 8, 8),)))
    assert [(row.name, row.work) for row in plan.in_float] == [("deformed.deform_conv2d", 64 * 4 * 2 * 9)]
