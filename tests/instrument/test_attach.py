"""Instruments come and go; what is exchanged afterwards is taken in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.backends.prepare import is_planned, plan_of, prepare, state_of
from lq.config.qconfig import QConfig
from lq.config.specs import WeightSpec
from lq.conversion.graph import as_graph
from lq.instrument.attach import attach, attach_again, detach, instrument_of
from lq.instrument.classes import place_of
from lq.lightning_module.target import float_state
from lq.ptq import calibrate
from tests.instrument.nets import Net, assert_same, images, ready, step


def test_detached_it_is_the_float_model_and_attached_again_the_quantized_one() -> None:
    net, plain = Net(), Net()
    ready(net, images()).eval()
    plain.load_state_dict(float_state(net))
    quantized = net(images(1)).detach()
    detach(net)
    assert torch.equal(net(images(1)), plain.eval()(images(1)))
    state, sites = state_of(net), plan_of(net).sites
    assert sites is not None
    attach(net, sites, state)
    assert torch.equal(net(images(1)), quantized)
    assert not torch.equal(quantized, plain(images(1)))


def test_modules_that_were_exchanged_are_taken_in() -> None:
    net = ready(Net(), images(), frozen=True)
    before, example = step(net, images(1)), instrument_of(net).example  # type: ignore[union-attr]
    assert attach_again(net) == {}
    for block in net.blocks:
        new: Any = nn.BatchNorm2d(4)
        new.load_state_dict(block.bn1.state_dict())
        block.bn1 = new.train()
    assert attach_again(net) == {"blocks.0.bn1": "BatchNorm2d", "blocks.1.bn1": "BatchNorm2d"}
    assert instrument_of(net).example is example  # type: ignore[union-attr]
    assert_same(before, step(net, images(1)))


def test_hooks_from_before_an_exchange_stay_unknown_to_the_plan() -> None:
    """Their calls would otherwise be taken for those of the module."""
    net = ready(Net(), images(), frozen=True)
    for block in net.blocks:
        block.conv1.register_forward_hook(lambda module, args, out: torch.relu(out) + 100)
    expected, graph = net.eval()(images(1)).detach(), as_graph(net).code
    for block in net.blocks:
        new = nn.BatchNorm2d(4)
        new.load_state_dict(block.bn1.state_dict())
        block.bn1 = new.eval()
    assert len(attach_again(net)) == 2
    assert torch.equal(net(images(1)), expected)
    assert as_graph(net).code == graph


def test_hooks_that_the_plan_does_not_know_stay_unknown_when_modules_were_exchanged() -> None:
    def look(module: nn.Module, args: Any, output: Tensor) -> None:
        torch.relu(output)  # as the network itself does behind this layer

    net = ready(Net(), images(), frozen=True).eval()
    expected = net(images(1)).detach()
    net.stem.register_forward_hook(look)
    assert torch.equal(net(images(1)), expected)
    new: Any = nn.BatchNorm2d(4)
    new.load_state_dict(net.blocks[0].bn1.state_dict())
    net.blocks[0].bn1 = new.eval()
    assert attach_again(net) == {"blocks.0.bn1": "BatchNorm2d"}
    assert torch.equal(net(images(1)), expected)


class Scripted(nn.Module):
    """Its branch hides what it calls from whoever reads the code."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.weight = nn.Linear(4, 4), nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return F.linear(y, self.weight * 2) if y.shape[0] and bool(y.sum() != 0) else y


def test_what_cannot_be_read_is_planned_at_the_first_call() -> None:
    net = Scripted()
    prepared, x = prepare(net), torch.randn(8, 4)
    assert prepared is net
    assert not is_planned(net)
    calibrate(net, [x, x])
    assert [row.name for row in plan_of(net).quantized] == ["fc", "linear"]
    assert torch.isfinite(state_of(net).min_val).all()


def test_a_learned_scale_needs_a_parameter_and_an_example() -> None:
    learned = QConfig(weight=WeightSpec(learned_scale=True))
    with pytest.raises(ValueError, match=r"linear: its weight is computed in forward, and a learned scale belongs to"):
        prepare(Scripted(), learned, example_args=(torch.randn(2, 4),))
    with pytest.raises(ValueError, match=r"learned scales have to exist before the optimizer"):
        prepare(Scripted(), learned)


def test_a_plain_module_has_no_instrument() -> None:
    assert instrument_of(Net()) is None
    assert attach_again(Net()) == {}


def test_a_first_call_that_fails_is_given_back_and_the_next_one_plans() -> None:
    net = Scripted()
    prepared = prepare(net)
    with pytest.raises(ValueError, match="Scripted cannot be called with the example"):
        prepared(torch.randn(8, 5))
    assert not is_planned(prepared)
    assert state_of(prepared).names == []
    prepared(torch.randn(8, 4))
    assert [row.name for row in plan_of(prepared).quantized] == ["fc", "linear"]


def test_what_attach_refuses_leaves_no_place() -> None:
    learned, x = QConfig(weight=WeightSpec(learned_scale=True)), torch.randn(2, 4)
    net = Scripted()
    for _ in range(2):  # the second time is told the same, not that it is prepared already
        with pytest.raises(ValueError, match=r"linear: its weight is computed in forward"):
            prepare(net, learned, example_args=(x,))
        assert not any(place_of(module) for module in net.modules())
        assert "qat_state" not in net._modules
    assert [row.name for row in plan_of(prepare(net, example_args=(x,))).quantized] == ["fc", "linear"]


class ThroughNumpy(nn.Module):
    """Its numbers leave PyTorch on the way, which no reader of its code can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y + torch.from_numpy(y.detach().numpy() * 0))


def test_a_plan_made_at_the_first_call_warns_as_one_made_at_once() -> None:
    prepared = prepare(ThroughNumpy())
    assert not is_planned(prepared)
    with pytest.warns(UserWarning, match="from code that PyTorch does not show"):
        prepared(torch.randn(8, 4))
