from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lq.backends.pt2e.capture import STEP, capture
from lq.tracing.trace import trace


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=None), nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


class Net(nn.Module):
    """Modules called twice, a constant, methods, several results of one call, and a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.act, self.fc = Block(), nn.ReLU(), nn.Linear(2, 2)
        self.register_buffer("shift", torch.ones(1))

    def forward(self, x: Tensor, *, gain: Tensor) -> dict[str, Tensor]:
        left, right = self.block(x).chunk(2, dim=1)
        y = self.act(self.act(left) * gain) + self.shift
        return {"logits": self.fc(y.mean((2, 3))), "right": right}


X, GAIN = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 1, 1)


def test_every_operation_knows_where_it_comes_from():
    traced = trace(Net())
    captured = capture(traced, ((X,), {"gain": GAIN}))
    steps = {
        str(n.target): n.meta[STEP].name for n in captured.graph.nodes if n.op == "call_function" and STEP in n.meta
    }
    assert steps["aten.conv2d.default"] == "block_conv"
    assert steps["aten.batch_norm.default"] == "block_bn"
    assert steps["aten.hardswish.default"] == "block_act"
    assert steps["aten.linear.default"] == "fc"
    relus = [n.meta[STEP].name for n in captured.graph.nodes if str(n.target) == "aten.relu.default"]
    assert relus == ["act", "act_1"]
    stacks = [n.meta["nn_module_stack"] for n in captured.graph.nodes if str(n.target) == "aten.conv2d.default"]
    assert [path for path, _ in stacks[0].values()] == ["L['self'].block", "L['self'].block.conv"]


def test_the_model_stays_as_it_was():
    net: Any = Net()
    net.block.bn.eval()
    traced, before = trace(net), copy.deepcopy(net.state_dict())
    capture(traced, ((X,), {"gain": GAIN}))
    assert [m.training for m in net.modules()] == [m is not net.block.bn for m in net.modules()]
    assert net.block.bn.momentum is None
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_one_sample_is_enough_for_batch_norm():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    captured = capture(trace(net), ((torch.rand(1, 3),), {}))
    assert any(str(n.target) == "aten.batch_norm.default" for n in captured.graph.nodes)


def test_what_export_refuses_is_said():
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.nonzero().float() if x.sum() > 0 else x

    with pytest.raises(ValueError, match=r"torch\.export refuses Sequential: .* use QConfig"):
        capture(trace(nn.Sequential(nn.Linear(2, 2), Counts())), ((torch.rand(2, 2),), {}))
