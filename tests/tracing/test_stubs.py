from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub

from lq.tracing.stubs import (
    annotated_region,
    erase_stubs,
    functionals,
    is_stub,
    is_switched_off,
    prepared_by_torch_ao,
    quant_stubs,
)
from lq.tracing.trace import trace


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.inside, self.after = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.join: Any = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        q = self.quant(x)
        y = self.join.add_relu(q, self.inside(q)).reshape(q.shape[0], 4)
        z: Tensor = self.after(self.dequant(y)) + x
        return z


def names(nodes: Any) -> list[str]:
    return [node.name for node in nodes]


def test_the_region_is_what_comes_from_a_quant_stub():
    graph_module = trace(Net())
    assert names(quant_stubs(graph_module)) == ["quant"]
    inside = annotated_region(graph_module)
    assert names(n for n in graph_module.graph.nodes if n in inside) == ["quant", "inside", "add", "relu", "reshape"]


def test_functionals_are_found_without_their_relu():
    assert {node.name: owner for node, owner in functionals(trace(Net())).items()} == {"add": "join"}


def test_erased_stubs_compute_nothing():
    net, x = Net(), torch.rand(3, 4)
    graph_module = trace(net)
    erase_stubs(graph_module)
    assert not [n for n in graph_module.graph.nodes if str(n.target) in ("quant", "dequant")]
    assert torch.equal(graph_module(x), net(x))


def test_classes_of_the_same_name_are_no_stubs():
    own = type("QuantStub", (nn.Module,), {})()
    derived = type("Mine", (QuantStub,), {})()
    assert (is_stub(own), is_stub(derived), is_stub(None)) == (False, True, False)


@pytest.mark.parametrize(
    ("set_on", "value", "expected"), [("", None, True), ("a", None, True), ("a.b", 1, False), ("", 1, False)]
)
def test_the_nearest_qconfig_counts(set_on, value, expected):
    net = nn.Module()
    net.a = nn.Module()
    net.a.b = nn.Linear(2, 2)
    net.a.qconfig = None if set_on == "a.b" else net.__dict__.get("qconfig", 1)
    if set_on == "":
        del net.a.qconfig
    net.get_submodule(set_on).qconfig = value
    assert is_switched_off(net, "a.b") is expected


def test_float_models_are_not_taken_for_prepared_ones():
    assert prepared_by_torch_ao(Net()) is None  # FloatFunctional is a class of torch.ao.nn.quantized


def test_stubs_survive_tracing_in_both_modes():
    graph_module: fx.GraphModule = trace(nn.Sequential(QuantStub(), nn.Linear(2, 2), nn.Dropout(0.1), DeQuantStub()))
    assert names(graph_module.graph.nodes) == ["input_1", "_0", "_1", "_2", "_3", "output"]
