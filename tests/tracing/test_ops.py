from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import lq
from lq.metrics import sqnr
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
        (lambda x: F.max_pool2d(F.pad(x, (0, 1)), 2), True),
        (lambda x: F.max_pool2d(F.pad(x, (0, 1), value=0.0), 2), True),
        (lambda x: F.max_pool2d(F.pad(x, (0, 1), mode="reflect"), 2), True),
        (lambda x: F.max_pool2d(F.pad(x, (0, 1), value=-torch.inf), 2), False),
        (lambda x: F.max_pool2d(F.pad(x, (0, 1), "constant", -1e9), 2), False),
        (lambda x: F.max_pool2d(x.masked_fill(x < 0, -1e9).flatten(2), 2), False),
        (lambda x: F.adaptive_max_pool2d(torch.where(x < 0, -1e9, x), 2), False),
        (lambda x: x.masked_fill(x < 0, -1e9).flatten(2), True),
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


class MaximumOfMasked(nn.Module):
    """Puts ``value`` where no maximum shall be, as padding or at masked places, and takes the maximum."""

    def __init__(self, fill: Callable[[Tensor, float], Tensor], value: float) -> None:
        super().__init__()
        self.fill, self.value = fill, value
        self.first, self.last = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.max_pool1d(self.fill(self.first(x), self.value), 3, 2))


def _every_fifth(x: Tensor) -> Tensor:
    return torch.arange(x.shape[2], device=x.device) % 5 == 0


@pytest.mark.parametrize("value", [-1e9, -torch.inf])
@pytest.mark.parametrize(
    "fill",
    [
        lambda x, value: F.pad(x, (0, 1), value=value),
        lambda x, value: x.masked_fill(_every_fifth(x), value),
        lambda x, value: torch.where(_every_fifth(x), value, x),
    ],
)
def test_what_a_maximum_drops_has_no_part_in_a_range(fill: Callable[[Tensor, float], Tensor], value: float):
    torch.manual_seed(0)
    net, x = MaximumOfMasked(fill, value), torch.randn(8, 3, 34)
    expected = net(x).detach()
    prepared = lq.prepare(net, example_args=(x,))
    lq.calibrate(prepared, [x])
    lq.set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    with torch.no_grad():
        fake = prepared.eval()(x)
    assert sqnr(expected, fake) > 25  # as without a mask; with -1e9 in the range it was 1
    assert sqnr(fake, lq.convert(prepared)(x)) > 50
