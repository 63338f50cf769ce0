from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lq.tracing import ops


def last_node(function: Callable[[Tensor], object]) -> fx.Node:
    return list(fx.symbolic_trace(function).graph.nodes)[-2]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: F.relu(x), ("relu", False)),
        (lambda x: F.relu(x, True), ("relu", True)),
        (lambda x: F.relu(x, inplace=True), ("relu", True)),
        (lambda x: x.relu(), ("relu", False)),
        (lambda x: x.relu_(), ("relu", True)),
        (lambda x: torch.relu(x), ("relu", False)),
        (lambda x: x.clamp(min=0.0), ("relu", False)),
        (lambda x: F.relu6(x), ("relu6", False)),
        (lambda x: x.clamp(0.0, 6.0), ("relu6", False)),
        (lambda x: torch.clamp(x, min=0.0, max=6.0), ("relu6", False)),
        (lambda x: F.hardtanh(x, 0.0, 6.0), ("relu6", False)),
        (lambda x: x.clamp(max=6.0), None),
        (lambda x: x.clamp(0.0, 5.0), None),
        (lambda x: F.hardtanh(x), None),
        (lambda x: F.leaky_relu(x), None),
    ],
)
def test_relus_in_every_spelling(function: Callable[[Tensor], Tensor], kind: tuple[str, bool] | None):
    assert ops.relu_kind(last_node(function), {}) == kind


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


@pytest.mark.parametrize("module", [kind for kind in ops.SAME_GRID_MODULES if kind not in (nn.ChannelShuffle,)])
def test_same_grid_modules_invent_no_values(module: type[nn.Module]):
    arguments = {nn.Unflatten: (1, (2, 2)), nn.ZeroPad2d: (1,), nn.PixelShuffle: (2,), nn.PixelUnshuffle: (2,)}
    size = {nn.MaxPool1d: (1, 4, 4), nn.AdaptiveMaxPool1d: (1, 4, 4), nn.MaxPool3d: (1, 2, 4, 4, 4)}
    size |= {nn.Dropout1d: (1, 4, 4), nn.Dropout3d: (1, 2, 4, 4, 4)}
    default = (2,) if "Pool" in module.__name__ or "Upsampling" in module.__name__ else ()
    kwargs = {"scale_factor": 2} if module is nn.UpsamplingNearest2d else {}
    made = module(*(() if kwargs else arguments.get(module, default)), **kwargs).eval()
    x = torch.randn(size.get(module, (1, 4, 4, 4)))
    assert set(made(x).flatten().tolist()) <= {*x.flatten().tolist(), 0.0}
