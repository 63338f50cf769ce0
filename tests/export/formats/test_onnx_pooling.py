"""Pooling is the same behind the rewriting, and the same in the runtimes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.export import Dim

from lq.backends.prepare import prepare
from lq.deployment.deploy import export_artifact
from lq.export.formats.onnx import write_program
from lq.export.formats.onnx_pooling import rewrite_average_pooling, rewrite_max_pooling
from lq.export.formats.onnx_program import rewrite
from lq.export.formats.onnx_rewriter import Rewriter
from lq.export.formats.program import float_program
from lq.ptq import calibrate
from tests.tiny import quicken_deployment

aten = torch.ops.aten

SIZES = list(itertools.product((7, 8, 11), (2, 3, 4), (1, 2, 3, 5), (0, 1)))  # input, kernel, stride, padding


def graph_of(operation: Any, x: torch.Tensor, *args: Any) -> fx.Graph:
    graph = fx.Graph()
    given = graph.placeholder("x")
    given.meta["val"] = x
    out = graph.call_function(operation, (given, *args))
    out.meta["val"] = operation(x, *args)
    graph.output(out)
    return graph


def rewritten(rewriting: Any, graph: fx.Graph) -> fx.Graph | None:
    """The same graph with another pooling, or ``None`` if it may stay."""
    (node,) = [node for node in graph.nodes if node.op == "call_function"]
    made = rewriting(Rewriter(graph, node).call, node)
    if made is None:
        return None
    node.replace_all_uses_with(made)
    graph.erase_node(node)
    graph.lint()
    return graph


def run(graph: fx.Graph, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = fx.GraphModule(nn.Module(), graph)(x)
    return out


@pytest.mark.parametrize("counts_padding", [True, False])
@pytest.mark.parametrize("divisor", [None, 5])
def test_average_pooling_is_the_same(counts_padding: bool, divisor: int | None) -> None:
    changed = 0
    for size, kernel, stride, padding in SIZES:
        if padding > kernel // 2:
            continue
        x = torch.rand(2, 3, size, 9)
        args = ([kernel, 3], [stride, 2], [padding, 0], True, counts_padding, divisor)
        graph = rewritten(rewrite_average_pooling, graph_of(aten.avg_pool2d.default, x, *args))
        if graph is None:
            assert not counts_padding
            continue
        changed += 1
        torch.testing.assert_close(run(graph, x), aten.avg_pool2d.default(x, *args))
        for node in graph.nodes:
            if node.target is aten.avg_pool2d.default:  # beyond the padding nothing is counted anywhere
                _, _, _, _, ceil, counts, override = (*node.args, *(False, True, None)[len(node.args) - 4 :])
                assert override is None
                assert not (ceil and counts)
    assert changed > 20


@pytest.mark.parametrize(("dimensions", "shape"), [(1, (2, 3, 11)), (3, (2, 3, 7, 8, 9))])
def test_other_numbers_of_dimensions(dimensions: int, shape: tuple[int, ...]) -> None:
    pool = getattr(aten, f"avg_pool{dimensions}d").default
    x = torch.rand(shape)
    graph = rewritten(rewrite_average_pooling, graph_of(pool, x, [3], [2], [1], True))
    expected = pool(x, [3], [2], [1], True)
    assert graph is None or torch.allclose(run(graph, x), expected)
    without_padding = rewritten(rewrite_average_pooling, graph_of(pool, x, [2], [], 0, True))
    assert without_padding is not None
    torch.testing.assert_close(run(without_padding, x), pool(x, [2], [], 0, True))


def test_max_pooling_is_the_same_and_keeps_the_windows_that_ceil_mode_adds() -> None:
    kept = 0
    for size, kernel, stride, padding in SIZES:
        if padding > kernel // 2:
            continue
        x = torch.rand(2, 3, size, size)
        args = ([kernel], [stride], [padding], [1], True)
        graph = rewritten(rewrite_max_pooling, graph_of(aten.max_pool2d.default, x, *args))
        expected = aten.max_pool2d.default(x, *args)
        if graph is None:
            kept += 1
            assert expected.shape != aten.max_pool2d.default(x, *args[:-1]).shape
        else:
            assert torch.equal(run(graph, x), expected)
    assert 0 < kept < len(SIZES)


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        (11, {"kernel_size": 2}),  # ONNX Runtime counts the rest of the last window
        (12, {"kernel_size": 3, "stride": 2, "padding": 1}),  # ONNX counts what is beyond the padding
        (11, {"kernel_size": 3, "padding": 1}),  # ONNX has one window more
        (11, {"kernel_size": 2, "divisor_override": 3}),  # torch.onnx knows no divisor
    ],
)
def test_int8_pooling_of_a_runtime_is_that_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, settings: dict[str, int]
) -> None:
    pytest.importorskip("onnxruntime")
    quicken_deployment(monkeypatch)
    torch.manual_seed(0)
    pool: Any = nn.AvgPool2d(ceil_mode=True, **settings)
    x = torch.rand(4, 3, size, size)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(8, 4, 1))
    prepared = prepare(net, example_args=(x,))
    calibrate(prepared, [x], show_progress=False)
    done = export_artifact(prepared, [x], tmp_path / "int8", ["onnx"])
    assert done.parity["onnx"].sqnr_db > 60


class Pool(nn.Module):
    def __init__(self, operation: Any, *args: Any) -> None:
        super().__init__()
        self.operation, self.args = operation, args

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.operation(x, *self.args)
        return out


def rewritten_for_open_sizes(operation: Any, *args: Any) -> list[fx.Node]:
    """Calls of the operation in what a call became, which computes the same for sizes that leave all remainders."""
    pool, sizes = Pool(operation, *args), {0: Dim("batch"), 2: Dim.AUTO, 3: Dim.AUTO}
    program = rewrite(torch.export.export(pool, (torch.rand(2, 3, 12, 12),), dynamic_shapes=(sizes,)))
    for shape in ((1, 3, 12, 7), (3, 3, 8, 9), (2, 3, 10, 11)):
        x = torch.rand(shape)
        torch.testing.assert_close(program.graph_module(x)[0], pool(x))
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    numbers = [size for node in nodes for size in node.meta["val"].shape if isinstance(size, int)]
    assert max(numbers) == 3, "sizes became constants"
    return [node for node in nodes if node.target is operation]


OPEN = [
    (kernel, stride, padding)
    for kernel, stride in (([2, 2], [2, 2]), ([3, 3], [2, 2]), ([3, 3], [3, 3]), ([2, 1], [3, 2]), ([3, 2], [2, 1]))
    for padding in ([0, 0], [1, 0])
]


@pytest.mark.parametrize("divisor", [None, 3])
def test_average_pooling_of_open_sizes_is_the_same(divisor: int | None) -> None:
    for call, ceils, counts in itertools.product(OPEN, (True, False), (True, False)):
        for node in rewritten_for_open_sizes(aten.avg_pool2d.default, *call, ceils, counts, divisor):
            _, _, _, _, ceil, counted, override = (*node.args, *([0, 0], False, True, None)[len(node.args) - 3 :])
            assert not (ceil and counted)
            assert override is None


def test_max_pooling_of_open_sizes_is_the_same() -> None:
    kept = 0
    for call, dilation, ceils in itertools.product(OPEN, (1, 2), (True, False)):
        (node,) = rewritten_for_open_sizes(aten.max_pool2d.default, *call, [dilation] * 2, ceils)
        kept += len(node.args) > 5 and bool(node.args[5])
    assert 0 < kept < len(OPEN) * 2


def with_places(dimensions: int) -> Any:
    return getattr(aten, f"max_pool{dimensions}d_with_indices").default


@pytest.mark.parametrize(
    ("dimensions", "shape"), [(1, (2, 3, 11)), (2, (2, 3, 8, 9)), (2, (2, 3, 9, 7)), (3, (2, 3, 5, 7, 8))]
)
def test_places_of_maxima_are_the_same(dimensions: int, shape: tuple[int, ...]) -> None:
    changed = 0
    for kernel, stride, padding in ((2, 2, 0), (2, 2, 1), (3, 2, 1), (3, 3, 1), (2, 3, 0)):
        settings = ([number] * dimensions for number in (kernel, stride, padding, 1))
        pool, x = Pool(with_places(dimensions), *settings, True), torch.rand(shape)
        program = rewrite(torch.export.export(pool, (x,)))
        nodes = [node for node in program.graph.nodes if node.target is with_places(dimensions)]
        changed += not any(len(node.args) > 5 for node in nodes)
        torch.testing.assert_close(program.module()(x), pool(x))
    assert changed


def test_places_of_maxima_in_onnxruntime(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pool = Pool(with_places(2), [2, 2], [2, 2], [1, 1], [1, 1], True)
    program, _ = float_program(pool.eval(), ((torch.rand(2, 3, 7, 9),), {}))
    write_program(program, tmp_path / "x.onnx")
    session, x = onnxruntime.InferenceSession(tmp_path / "x.onnx"), torch.rand(5, 3, 7, 9)
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(tuple(map(torch.from_numpy, got)), pool(x))


def test_places_of_maxima_in_open_sizes_are_refused() -> None:
    pool, sizes = Pool(with_places(2), [3, 3], [3, 3], [1, 1], [1, 1], True), {0: Dim("batch"), 3: Dim.AUTO}
    program = torch.export.export(pool, (torch.rand(2, 3, 12, 12),), dynamic_shapes=(sizes,))
    with pytest.raises(ValueError, match="no max pooling with ceil_mode and return_indices of a height"):
        rewrite(program)
