from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.backends.base import recorded_call
from lq.backends.prepare import plan_of, prepare
from lq.backends.pt2e.capture import STEP, capture
from lq.config.qconfig import QConfig
from lq.tracing.layers import seen_of
from lq.tracing.ops import SEEN


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
    captured = capture(recorded_call(Net(), (X,), {"gain": GAIN}))
    steps = {
        str(n.target): seen_of(n.meta[STEP]).stack[-1]
        for n in captured.graph.nodes
        if n.op == "call_function" and STEP in n.meta and SEEN in n.meta[STEP].meta
    }
    assert steps["aten.conv2d.default"] == "block.conv"
    assert steps["aten.batch_norm.default"] == "block.bn"
    assert steps["aten.hardswish.default"] == "block.act"
    assert steps["aten.linear.default"] == "fc"
    relus = [n.meta[STEP] for n in captured.graph.nodes if str(n.target) == "aten.relu.default"]
    assert [seen_of(step).stack[-1] for step in relus] == ["act", "act"]
    assert relus[0] is not relus[1]
    stacks = [n.meta["nn_module_stack"] for n in captured.graph.nodes if str(n.target) == "aten.conv2d.default"]
    block, conv = ("L['self'].block", Block), ("L['self'].block.conv", nn.Conv2d)
    assert list(stacks[0].values()) == [block, conv]


def test_the_model_stays_as_it_was():
    net: Any = Net()
    net.block.bn.eval()
    before = copy.deepcopy(net.state_dict())
    capture(recorded_call(net, (X,), {"gain": GAIN}))
    assert [m.training for m in net.modules()] == [m is not net.block.bn for m in net.modules()]
    assert net.block.bn.momentum is None
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class Spellings(nn.Module):
    """Calls that a graph of functions has to make as the module does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.fc = nn.Parameter(torch.rand(4, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x).clone()
        y[:, 0] = 1.0
        y += x.to(torch.device("cpu"), torch.float32)
        y = 1 - y.view(y.shape[0], 2, 2).mT.reshape(-1, 4).contiguous(memory_format=torch.contiguous_format)
        y = F.linear(input=y, weight=self.weight)
        z: Tensor = torch.from_numpy(np.ones(4, dtype=np.float32)) * y.relu_()
        return z


def test_the_graph_computes_what_the_model_does():
    net, x = Spellings(), torch.rand(2, 4)
    (got,) = capture(recorded_call(net, (x,)))(x)
    torch.testing.assert_close(got, net(x))


def test_one_sample_is_enough_for_batch_norm():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(4, 2))
    prepared = prepare(net, QConfig(backend="pt2e", quantizer="x86_inductor"), (torch.rand(1, 3),))
    assert len(plan_of(prepared).quantized) == 2


def test_what_export_refuses_is_said():
    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clone().apply_(abs)

    with pytest.raises(ValueError, match=r"torch\.export refuses Calls: .* use QConfig"):
        capture(recorded_call(Calls(), (torch.eye(2),)))
