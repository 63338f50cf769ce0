from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from lq.tracing import ops


def last_node(function: Callable[[Tensor], object]) -> fx.Node:
    return list(fx.symbolic_trace(function).graph.nodes)[-2]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: F.relu(x), "relu"),
        (lambda x: F.relu(x, True), "relu"),
        (lambda x: F.relu(x, inplace=True), "relu"),
        (lambda x: x.relu(), "relu"),
        (lambda x: x.relu_(), "relu"),
        (lambda x: torch.relu(x), "relu"),
        (lambda x: x.clamp(min=0.0), "relu"),
        (lambda x: F.relu6(x), "relu6"),
        (lambda x: x.clamp(0.0, 6.0), "relu6"),
        (lambda x: torch.clamp(x, min=0.0, max=6.0), "relu6"),
        (lambda x: F.hardtanh(x, 0.0, 6.0), "relu6"),
        (lambda x: x.clamp(max=6.0), None),
        (lambda x: x.clamp(0.0, 5.0), None),
        (lambda x: F.hardtanh(x), None),
        (lambda x: F.leaky_relu(x), None),
    ],
)
def test_relus_in_every_spelling(function: Callable[[Tensor], Tensor], kind: str | None):
    assert ops.relu_kind(last_node(function)) == kind


@pytest.mark.parametrize(
    ("function", "joins"),
    [
        (lambda x: x + x.sin(), True),
        (lambda x: torch.add(x, x.sin()), True),
        (lambda x: x.mul(x.sin()), True),
        (lambda x: torch.cat([x, x.sin()], 1), True),
        (lambda x: torch.add(x, x.sin(), alpha=2), False),
        (lambda x: x + 1, False),
        (lambda x: x - x.sin(), False),
        (lambda x: torch.stack([x, x]), False),
    ],
)
def test_joins(function: Callable[[Tensor], Tensor], joins: bool):
    assert (ops.joined_tensors(last_node(function)) is not None) is joins


@pytest.mark.parametrize(
    ("function", "same"),
    [
        (lambda x: F.max_pool2d(x, 2), True),
        (lambda x: F.max_pool2d(x, 2, return_indices=True), False),
        (lambda x: x.chunk(2)[0], True),
        (lambda x: x.sin()[0], False),
        (lambda x: x[:, 1:], True),
        (lambda x: F.pixel_shuffle(x, 2), True),
        (lambda x: F.avg_pool2d(x, 2), False),
        (lambda x: torch.stack([x, x]), False),
    ],
)
def test_same_grid(function: Callable[[Tensor], Tensor], same: bool):
    assert ops.is_same_grid(last_node(function)) is same
