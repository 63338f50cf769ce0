"""Listeners hear a module however it is called, and leave it as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lq.backends.prepare import is_planned, prepare
from lq.instrument.attach import attach_again, detach
from lq.instrument.classes import place_of
from lq.instrument.listen import Listener
from tests.instrument.nets import Net, images, ready


@pytest.mark.parametrize("call", [lambda net, x: net(x), lambda net, x: net.forward(x)], ids=["call", "forward"])
@pytest.mark.parametrize("prepared", [False, True])
def test_it_hears_every_call(call: Any, prepared: bool) -> None:
    net = ready(Net(), images()) if prepared else Net()
    kind, heard = type(net), []
    listeners = [
        Listener(net, before=lambda args, kwargs, _: heard.append("before")),
        Listener(net, after=lambda args, kwargs, output: heard.append(tuple(output.shape))),
    ]
    y = call(net, images())
    assert heard == ["before", tuple(y.shape)]
    for listener in listeners:
        listener.remove()
        listener.remove()
    call(net, images())
    assert len(heard) == 2
    assert type(net) is kind
    assert (place_of(net) is None) is not prepared


def test_it_hears_parts_of_an_instrumented_module_and_changes_no_number() -> None:
    net = ready(Net(), images()).eval()
    expected, heard = net(images(1)), []
    listener = Listener(net.blocks[0].conv1, after=lambda args, kwargs, output: heard.append(output))
    assert torch.equal(net(images(1)), expected)
    listener.remove()
    assert len(heard) == 1
    assert isinstance(net.blocks[0].conv1, nn.Conv2d)


def test_a_float_module_that_is_heard_computes_as_ever() -> None:
    net = Net().eval()
    expected, heard = net(images()), []
    listener = Listener(net, after=lambda *given: heard.append(given))
    assert torch.equal(net(images()), expected)
    listener.remove()
    assert len(heard) == 1


class Branches(nn.Module):
    """Planned at its first call: its branch hides what it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        return torch.relu(y) if bool(y.sum() != 0) else y


def test_every_call_is_heard_once_though_the_first_makes_the_plan() -> None:
    net, heard = prepare(Branches()), []
    Listener(net, before=lambda *_: heard.append("before"), after=lambda *_: heard.append("after"))
    Listener(net.fc, after=lambda *_: heard.append("fc"))
    for _ in range(2):
        net(torch.randn(8, 4))
        assert heard == ["before", "fc", "after"]
        heard.clear()
    assert is_planned(net)


def test_they_go_on_hearing_when_modules_are_exchanged() -> None:
    net, heard = ready(Net(), images()), []
    listener = Listener(net, after=lambda *_: heard.append("net"))
    net.blocks[0].bn1 = nn.BatchNorm2d(4).train()
    attach_again(net)
    net(images())
    assert heard == ["net"]
    detach(net)
    net(images())
    assert heard == ["net", "net"]
    listener.remove()
    assert type(net) is Net
