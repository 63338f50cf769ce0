"""Whoever writes into a view of a rounded tensor writes into a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from lq.backends.prepare import prepare, set_phase

VIEWS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "view": lambda x: x.view(-1),
    "ravel": lambda x: x.ravel(),
    "reshape_as": lambda x: x.reshape_as(x),
    "view_as": lambda x: x.view_as(x),
    "moveaxis": lambda x: torch.moveaxis(x, 0, 1),
    "swapdims": lambda x: x.swapdims(0, 1),
    "adjoint": lambda x: x.adjoint(),
    "H": lambda x: x.H,
    "unfold": lambda x: x.unfold(0, 1, 1),
    "as_strided": lambda x: torch.as_strided(input=x, size=(12,), stride=(1,)),
    "tensor_split": lambda x: torch.tensor_split(x, 1)[0],
    "hsplit": lambda x: torch.hsplit(x, 1)[0],
}


class Writes(nn.Module):
    """Adds one to what a layer returns, through a view of that."""

    def __init__(self, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.view = nn.Linear(4, 4), nn.Linear(4, 2), view

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.view(x).add_(1)
        y: Tensor = self.second(x)
        return y


class Returns(Writes):
    """Returns a view."""

    def forward(self, x: Tensor) -> Tensor:
        return self.view(self.first(x))


def trained(net: nn.Module) -> tuple[Tensor, Tensor]:
    """Output and gradient of a step whose loss writes into the output."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 4)
    set_phase(prepare(net, example_args=(x,)), fake_quant=True, observer=True, freeze_bn=False)
    y = net.train()(x)
    y.mul_(2).sum().backward()
    gradient = net.get_parameter("first.weight").grad
    assert gradient is not None
    return y.detach().flatten().sort().values, gradient


@pytest.mark.parametrize("kind", [Writes, Returns])
@pytest.mark.parametrize("name", VIEWS)
def test_any_view_may_be_written_into(name: str, kind: type[Writes]) -> None:
    got, gradient = trained(kind(VIEWS[name]))
    expected, wanted = trained(kind(lambda x: x[:]))
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradient, wanted)
