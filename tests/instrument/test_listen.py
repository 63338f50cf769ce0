"""Listeners hear a module however it is called, and leave it as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

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
