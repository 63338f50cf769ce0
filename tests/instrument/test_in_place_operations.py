from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.backends.prepare import prepare, set_phase


class Net(nn.Module):
    def __init__(self, body: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.silu, self.relu = nn.SiLU(inplace=True), nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3, inplace=True)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def overwritten_and_read_again(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    F.relu_(y)
    return net.b(y)


def added_and_read_again(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.b(y)
    z.add_(y)
    return net.c(z)


def relu_on_one_branch(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.relu(y)
    return net.b(z) + y


def relu_on_a_view(net: Net, x: Tensor) -> Tensor:
    return net.b(F.relu(net.a(x).flatten(2).unflatten(2, (6, 6)), inplace=True))


def relu_positional(net: Net, x: Tensor) -> Tensor:
    y = net.a(x).permute(0, 1, 3, 2)
    return net.b(F.relu(y, True))


def filled(net: Net, x: Tensor) -> Tensor:
    return net.b(net.a(x).masked_fill_(x > 0, 0.5))


def without_a_twin(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.b(y.copy_(net.c(x)))


BODIES = [
    overwritten_and_read_again,
    added_and_read_again,
    relu_on_one_branch,
    relu_on_a_view,
    relu_positional,
    filled,
    without_a_twin,
    lambda net, x: net.b(net.silu(net.a(x))),
    lambda net, x: net.b(net.drop(net.a(x))),
    lambda net, x: net.b(F.dropout(net.a(x), 0.1, net.training, True)),
    lambda net, x: net.b(net.a(x).mul_(0.5).add_(1.0)),
    lambda net, x: net.b(torch.relu_(net.silu(net.a(x)))),
    lambda net, x: net.b(F.hardswish(net.a(x), inplace=True) + F.hardtanh_(net.c(x), -1.0, 1.0)),
]


@pytest.mark.parametrize("body", BODIES)
def test_in_place_operations_train_and_keep_their_meaning(body: Callable[[Net, Tensor], Tensor]):
    net, x = Net(body), torch.randn(2, 4, 6, 6)
    flags = net.silu.inplace, net.relu.inplace, net.drop.inplace
    prepared = prepare(copy.deepcopy(net), example_args=(x,))
    for fake_quant in (False, True):
        set_phase(prepared, fake_quant=fake_quant, observer=fake_quant, freeze_bn=False)
        torch.manual_seed(0)
        y = prepared.train()(x.clone())
        torch.manual_seed(0)
        expected = net.train()(x.clone())
        # 7-bit weights and 8-bit activations of a few layers; a wrong operand is off by its whole size
        assert (y - expected).norm() < (0.05 if fake_quant else 1e-6) * expected.norm()
        y.square().sum().backward()
    assert (net.silu.inplace, net.relu.inplace, net.drop.inplace) == flags


def test_an_absorbed_relu_keeps_working_in_place_before_quantization_starts():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 4, 4)
    outputs: list[Tensor] = []
    net[0].register_forward_hook(lambda module, args, output: outputs.append(output))
    prepared = prepare(net, example_args=(x,))
    outputs.clear()
    prepared(x)
    assert (outputs[0] >= 0).all()


def test_float_parts_keep_working_in_place():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Upsample(scale_factor=2), nn.SiLU(inplace=True))
    prepared = prepare(copy.deepcopy(net))
    assert prepared.get_submodule("3").inplace
