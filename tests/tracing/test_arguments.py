from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lq.backends.prepare import plan_of, prepare
from lq.conversion.convert import convert
from lq.conversion.reference import reference
from lq.ptq import calibrate
from lq.tracing.arguments import give_input_by_position


class Between(nn.Module):
    """An operation between two layers."""

    def __init__(self, operation: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1)
        self.identity, self.dropout, self.relu = nn.Identity(), nn.Dropout(), nn.ReLU()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(input=self.operation(self, self.first(x)))
        return y


OPERATIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "identity": lambda net, y: net.identity(input=y),
    "dropout": lambda net, y: net.dropout(input=y),
    "relu": lambda net, y: net.relu(input=y),
    "function": lambda net, y: F.relu6(input=y, inplace=True),
    "cat": lambda net, y: torch.cat(tensors=[y, y], dim=1)[:, 2:6],
    "max_pool": lambda net, y: F.max_pool2d(input=y, kernel_size=2),
    "where": lambda net, y: torch.where(condition=y > 0, input=y, other=0.5 * y),
    "mean": lambda net, y: torch.mean(input=y, dim=(2, 3), keepdim=True),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_arguments_by_name_change_nothing(name: str) -> None:
    net, x = Between(OPERATIONS[name]).eval(), torch.randn(8, 1, 6, 6)
    prepared = prepare(net, example_args=(x,))
    assert len(plan_of(prepared).quantized) == 2
    calibrate(prepared, [x])
    expected = prepared(x).detach()
    step = float(prepared.get_submodule("qat_state").scale_zero_point()[0][-1])  # kernels may round a tie the other way
    for lower in (convert, reference):
        torch.testing.assert_close(lower(prepared)(x), expected, atol=1.5 * step, rtol=0)


@fx.wrap
def twice_the_other(other: Tensor, input: Tensor) -> Tensor:
    return 2 * other


def test_only_the_first_argument_moves() -> None:
    graph = fx.symbolic_trace(lambda x, y: twice_the_other(input=x, other=y)).graph
    (call,) = [node for node in graph.nodes if node.op == "call_function"]
    give_input_by_position(graph)
    assert [str(arg) for arg in call.args] == ["y"]
    assert {key: str(value) for key, value in call.kwargs.items()} == {"input": "x"}


@pytest.mark.parametrize(
    ("function", "first", "others"),
    [
        (torch.where, "condition", ["input", "other"]),
        (torch.searchsorted, "sorted_sequence", ["input"]),
        (torch.special.polygamma, "n", ["input"]),
        (F.max_pool2d, "input", ["kernel_size"]),
        (torch.cat, "tensors", []),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_it_is_what_the_function_takes_first(function: Any, first: str, others: list[str]) -> None:
    graph = fx.Graph()
    given: dict[str, Any] = {name: graph.placeholder(name) for name in [*others, first]}
    call = graph.call_function(function, (), given)
    give_input_by_position(graph)
    assert call.args == (given.pop(first),)
    assert call.kwargs == given
