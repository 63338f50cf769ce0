"""Calls have the same names in training, whatever else is called there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lq.backends.prepare import plan_of, prepare
from lq.instrument.naming import Naming
from lq.instrument.record import record
from lq.tracing.ops import recorded
from lq.tracing.sites import CallAt


class More(nn.Module):
    """Calls the same function once more in training, ahead of the layer."""

    def __init__(self, drops: bool) -> None:
        super().__init__()
        self.weight, self.norm, self.drops = nn.Parameter(torch.randn(4, 2, 3, 3)), nn.BatchNorm2d(4), drops
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.kept = [F.conv2d(x.flip(2), self.weight)]
        y = F.conv2d(x, self.weight)
        y = F.dropout(y, 0.5, self.training and self.drops)
        z: Tensor = self.norm(y)
        return z


def naming_of(net: nn.Module, x: Tensor) -> Naming:
    recording = record(net, (x,), {})
    assert recording.training is not None
    calls, training = recording.evaluation.calls, recording.training.calls
    counting: set[fx.Node] = {node for _, node in calls if node is not None}
    return Naming(dict(net.named_modules()), calls, training, counting)


def test_a_call_in_training_is_the_one_on_the_same_line() -> None:
    naming = naming_of(More(drops=False), torch.randn(2, 2, 6, 6))
    assert ("", "conv2d", ((1, 0),)) in naming.differing
    layer = naming.in_training[CallAt("", "conv2d", 0)]
    (reader,) = [node for node in layer.users if recorded(node) == "batch_norm"]
    assert naming.in_training[CallAt("norm", "batch_norm", 0)] is reader
    assert naming.counts["", "conv2d"] == 1
    assert all(call.operation != "conv2d" for call in naming.kept()), "the one that is kept has no name in evaluation"


@pytest.mark.parametrize("drops", [False, True])
def test_a_batch_norm_is_apart_if_something_lies_in_front_of_it_in_training(drops: bool) -> None:
    prepared = prepare(More(drops), example_args=(torch.randn(2, 2, 6, 6),))
    sites = plan_of(prepared).sites
    assert sites is not None
    (layer,) = sites.layers
    assert layer.norm == CallAt("norm", "batch_norm", 0)
    assert layer.apart == drops
    assert not layer.kept
