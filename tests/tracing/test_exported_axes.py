"""Dynamic axes that the code makes constants, or for which a graph would compute something else."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq
from lq.conversion.graph import as_graph
from lq.deployment.outputs import calls_of_other_sizes
from lq.tracing.axes import asked_axes, checked_axes
from lq.tracing.exported import export


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


class OfOneNumber(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / int(x.shape[2])


class WithPositions(Net):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.rand(4, 8, 12))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.positions


class Branches(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * 2 if x.shape[2] > 10 else y


class OfEvenSizes(Net):
    """What is written for images of an even size, ``how`` saying what becomes of others."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.how == "another branch":
            return y * 2 if x.shape[2] % 2 else y
        return y + nn.functional.interpolate(nn.functional.max_pool2d(y, 2), scale_factor=2.0)


class OneSize(Net):
    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting() and x.shape[2] != 8:
            raise ValueError("images of 8 rows only")
        return super().forward(x)


class Pair(Net):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x) * mask.unsqueeze(1)


def opened(net: nn.Module, axes: Any, *more: Tensor) -> Any:
    prepared = lq.prepare(net, example_args=(torch.rand(2, 3, 8, 12), *more))
    return as_graph(prepared, axes=checked_axes(axes))


@pytest.mark.parametrize(
    ("net", "line"),
    [(OfOneNumber, r"int\(x\.shape\[2\]\)"), (WithPositions, r"super\(\)\.forward\(x\) \+ self\.positions")],
)
def test_the_line_that_makes_a_size_a_constant_is_named(net: type[Net], line: str) -> None:
    with pytest.raises(
        ValueError, match=rf"(?s)dimension 2 of x is dynamic.*test_exported_axes\.py:\d+, in .*{line}.* 8"
    ):
        opened(net(), {"x": [2]})


def test_an_input_that_has_to_change_with_another_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"mask has this size, too; .* write dynamic_axes={'x': \[2\], 'mask': \[1\]}\."
    ):
        opened(Pair(), {"x": [2]}, torch.rand(2, 8, 12))


def test_a_branch_on_a_size_does_not_pass_unnoticed() -> None:
    with pytest.raises(
        ValueError, match=r"of the shapes \(2, 3, 16, 12\) the graph differs by .* from what the module"
    ):
        opened(Branches(), {"x": [2]})


def test_a_branch_for_odd_sizes_does_not_pass_unnoticed() -> None:
    with pytest.raises(ValueError, match=r"of the shapes \(2, 3, 7, 12\) the graph differs by .* from what the module"):
        opened(OfEvenSizes("another branch"), {"x": [2]})


def test_a_module_that_refuses_odd_sizes_itself_is_compared_at_others(capsys: pytest.CaptureFixture[str]) -> None:
    net, x = OfEvenSizes("an error"), torch.rand(2, 3, 8, 12)
    with pytest.raises(RuntimeError, match="must match the size"):
        net(x[:, :, :7])
    graph = opened(net, {"x": [2]})
    assert [args[0].shape[2] for (args, _), _ in calls_of_other_sizes(graph.eval(), ((x,), {}))] == [16]
    free = opened(Net(), {"x": [2]})
    assert [args[0].shape[2] for (args, _), _ in calls_of_other_sizes(free.eval(), ((x,), {}))] == [7, 16]
    assert capsys.readouterr().err == "", "no traceback of what was only tried"


def test_a_module_that_takes_one_size_says_so_itself() -> None:
    with pytest.raises(ValueError, match=r"neither twice nor half as large as the example: .*images of 8 rows only"):
        opened(OneSize(), {"x": [2]})


def test_sizes_that_have_to_be_equal_have_one_name() -> None:
    mask = torch.ones(2, 8, 12)
    graph = opened(Pair(), {"x": {2: "height", 3: "width"}, "mask": [1, 2]}, mask)
    assert asked_axes(graph) == {"x": {2: "height", 3: "width"}, "mask": {1: "height", 2: "width"}}


@pytest.mark.parametrize("batch", [1, 2])
def test_the_graph_computes_what_the_module_does_for_other_sizes(batch: int) -> None:
    net = Net()
    prepared = lq.prepare(net, example_args=(torch.rand(batch, 3, 8, 12),))
    lq.calibrate(prepared, [torch.rand(4, 3, 8, 12)])
    graph = as_graph(prepared, axes=checked_axes({"x": [2, 3]}))
    for shape in ((1, 3, 8, 12), (3, 3, 5, 40)):
        x = torch.rand(shape)
        with torch.no_grad():
            assert torch.equal(graph(x), prepared.eval()(x))


class OneResultMore(Net):
    """Returns a map of its own for high images."""

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return (y, y) if x.shape[2] == 7 else (y,)


def test_another_number_of_results_for_another_size_is_refused() -> None:
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="differs in the number of its results, 1 and 2, from what the module"):
        export(OneResultMore(), ((x,), {}), nullcontext, wanted={"x": {2: ""}})
