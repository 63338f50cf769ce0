from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lq.backends.prepare import prepare
from lq.config.qconfig import QConfig
from lq.config.specs import WeightSpec
from lq.conversion.convert import convert
from lq.conversion.graph import as_graph
from lq.conversion.lowering import Lowering, bare_layer
from lq.conversion.reference import reference
from lq.core.modules import QATConv2d
from lq.ptq import calibrate
from lq.ptq.layers import layers_of


class Passing(Lowering):
    """Leaves out the quantizers and computes each layer as a bare float one."""

    prefix = "Passing"

    def quantizer(self, node: Any, module: Any) -> Any:
        return self.activated(self.real(node.args[0]), module.activation)

    def layer(self, node: Any, module: Any) -> Any:
        layer = bare_layer(module)
        layer._parameters = {"weight": module.weight, "bias": module.bias}
        return self.call(str(node.target), layer, self.real(node.args[0]))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "twice": nn.Conv2d(4, 4, 1)})
        self.register_buffer("shift", torch.ones(4, 1, 1))
        self.register_buffer("unused", torch.ones(9))

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = torch.relu(self.block["conv"](x)) + self.shift
        x = self.block["twice"](self.block["twice"](x) + self.shift)
        return {"out": [x, x.mean()], "none": None}


def test_a_lowering_that_does_nothing_gives_the_float_model() -> None:
    net, x = Net(), torch.randn(2, 3, 6, 6)
    prepared = prepare(copy.deepcopy(net), example_args=(x,))
    calibrate(prepared, [x])
    lowered = Passing(as_graph(prepared)).run()
    assert type(lowered).__name__ == "PassingNet"
    assert not lowered.training
    got, expected = lowered(x), net(x)
    assert got.keys() == expected.keys()
    torch.testing.assert_close(got["out"][0], expected["out"][0])
    names = {name for name, module in lowered.named_modules() if isinstance(module, nn.Conv2d)}
    assert {"block.conv", "block.twice"} <= names
    assert len(names) == 3, "a layer that is called twice is lowered for each call"
    assert {name for name, _ in lowered.named_buffers()} == {"shift"}


class Namesakes(nn.Module):
    """Names that are one when their dots are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.act_0, self.act_1 = nn.Tanh(), nn.Softplus()
        self.act = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4))
        self.inner = nn.Module()
        self.inner.register_buffer("shift", torch.full((4,), 2.0))
        self.register_buffer("inner_shift", torch.full((4,), -1.0))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act_1(self.act_0(self.act(x) + self.inner.shift)) * self.inner_shift
        return y


@pytest.mark.parametrize("lower", [convert, reference], ids=["convert", "reference"])
def test_namesakes_stay_apart(lower: Any) -> None:
    x = torch.randn(64, 4)
    prepared = prepare(Namesakes())
    calibrate(prepared, [x])
    expected = prepared(x).detach()
    # A grid has 255 steps or so; another activation or buffer is off by more than a hundred of them.
    torch.testing.assert_close(lower(prepared)(x), expected, atol=float(expected.abs().max()) / 50, rtol=0)


def test_a_bare_layer_has_the_hyperparameters_and_no_weights() -> None:
    layer = nn.Conv2d(4, 8, 3, stride=2, padding="valid", groups=2)
    prepared = prepare(nn.Sequential(layer), QConfig(weight=WeightSpec(learned_scale=True)))
    qat = layers_of(prepared)[0].module
    assert isinstance(qat, QATConv2d)
    bare: Any = bare_layer(qat)
    assert type(bare) is nn.Conv2d
    assert (bare.stride, bare.padding, bare.groups) == ((2, 2), "valid", 2)
    assert list(bare.parameters()) == []
    # What belongs to the whole model would be copied for each of its layers.
    assert list(bare.modules()) == [bare]
    assert not any(isinstance(value, nn.Module) for value in vars(bare).values())


def test_a_subclass_has_to_say_what_quantizers_and_layers_become() -> None:
    prepared = prepare(nn.Sequential(nn.Linear(2, 2)))
    calibrate(prepared, [torch.randn(4, 2)])
    with pytest.raises(NotImplementedError):
        Lowering(as_graph(prepared)).run()
