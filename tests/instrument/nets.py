"""Nets, and models that are ready to train with all ranges known."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lq.backends.prepare import prepare, set_phase, state_of


class Block(nn.Module):
    """A residual block: a folded BatchNorm, an absorbed ReLU and a join."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.act = nn.Conv2d(channels, channels, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv2(self.act(self.bn1(self.conv1(x)))) + x)


def plain(block: Any, x: Tensor) -> Tensor:
    return block(x)


class Net(nn.Module):
    """Blocks, between a stem and a head; ``run`` says how a block is called."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 3)
        self.run = run or plain

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = self.run(block, x)
        return self.head(x.mean((2, 3)))


def images(seed: int = 0, count: int = 8) -> Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def ready(net: nn.Module, *args: Any, frozen: bool = False, observer: bool = False) -> nn.Module:
    """Prepared in place, with ranges, in training, fake quantization on."""
    prepared = prepare(net, example_args=args)
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    with torch.no_grad():
        prepared.train()(*args)
    set_phase(prepared, fake_quant=True, observer=observer, freeze_bn=frozen)
    return prepared


def step(prepared: nn.Module, *args: Any, call: Callable[..., Any] | None = None) -> dict[str, Tensor]:
    """Output, gradients and ranges of one step, after which everything is as before."""
    before = copy.deepcopy(prepared.state_dict())
    prepared.zero_grad()
    torch.manual_seed(0)
    y = (prepared if call is None else call)(*args)
    (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y).sin()).sum().backward()
    found = {"y": y.detach()}
    found |= {name: p.grad.clone() for name, p in prepared.named_parameters() if p.grad is not None}
    found["max_val"] = state_of(prepared).max_val.clone()
    prepared.load_state_dict(before)
    return found


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """But for the last bit of a float, which depends on where in memory it lies; a step of a grid is 1e-2 and more."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        limit = 1e-5 * float(value.abs().max())
        torch.testing.assert_close(b[name], value, rtol=0, atol=limit, msg=lambda m, n=name: f"{n}: {m}")
