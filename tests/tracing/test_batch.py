from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import lq
from lq.conversion.graph import as_graph
from lq.tracing.batch import fixed_batch

Body = Callable[[Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        self.fc, self.body = nn.Linear(3, 3), body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.fc(x))


def by_length(x: Tensor) -> Tensor:
    return x - x.sum(0) / len(x)


def by_int(x: Tensor) -> Tensor:
    return x.reshape(int(x.shape[0]), 3, 1)


def by_loop(x: Tensor) -> Tensor:
    return torch.stack([row * 2 for row in x])


def by_shape(x: Tensor) -> Tensor:
    return x - x.sum(0) / x.shape[0]


def by_check(x: Tensor) -> Tensor:
    assert len(x) > 0
    return x.reshape(-1, 3, 1)


def captured(body: Body, size: int) -> fx.GraphModule:
    x = torch.randn(size, 3)
    prepared = lq.prepare(Net(body), example_args=(x,))
    prepared(x)
    return as_graph(prepared)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(
    ("body", "code"),
    [(by_length, "/ len(x)"), (by_int, "int(x.shape[0])"), (by_loop, "for row in x")],
)
def test_a_size_that_becomes_a_number_is_named_with_its_line(body: Body, code: str, size: int) -> None:
    batch = fixed_batch(copy.deepcopy(captured(body, size)))
    assert batch is not None
    assert batch.size == size
    assert "test_batch.py" in batch.line
    assert code in batch.line


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("body", [by_shape, by_check])
def test_a_size_that_stays_open_or_changes_nothing_is_none(body: Body, size: int) -> None:
    graph = captured(body, size)
    assert fixed_batch(graph) is None
    assert len(graph(torch.randn(size + 2, 3))) == size + 2


def test_an_input_that_nothing_reads_leaves_nothing_open() -> None:
    class Reads(Net):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return super().forward(x)

    given = torch.randn(4, 3), torch.ones(4, 3)
    prepared = lq.prepare(Reads(by_int), example_args=given)
    prepared(*given)
    batch = fixed_batch(as_graph(prepared))
    assert batch is not None
    assert batch.size == 4
    assert batch.independent
    assert "int(x.shape[0])" in batch.line


@pytest.mark.parametrize(
    ("returned", "independent"),
    [
        (lambda y: y * torch.ones(len(y), 1), True),
        (lambda y: y / len(y), False),
        (lambda y: {"y": y * torch.ones(len(y), 1), "count": len(y)}, False),
        (lambda y: {"y": y * torch.ones(len(y), 1), "count": y.shape[0]}, False),
        (lambda y: {"y": y * torch.ones(len(y), 1), "classes": 3}, True),
    ],
)
def test_samples_are_independent_if_nothing_that_is_returned_depends_on_how_many(
    returned: Body, independent: bool
) -> None:
    batch = fixed_batch(captured(returned, 4))
    assert batch is not None
    assert batch.independent == independent
