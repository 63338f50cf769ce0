from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub

from lq.instrument.record import record
from lq.tracing.layers import seen_of
from lq.tracing.ops import SEEN
from lq.tracing.stubs import (
    annotated_region,
    functionals,
    is_switched_off,
    prepared_by_torch_ao,
    quant_stub,
    quant_stubs,
    stub_function,
)
from lq.tracing.symbolic import read_calls


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


def operations(nodes: Any) -> list[str]:
    return [of(node) for node in nodes]


def of(node: fx.Node) -> str:
    return f"{seen_of(node).stack[-1]} {seen_of(node).operation}".strip()


GRAPHS = {
    "recorded": lambda: record(Net(), (torch.rand(3, 4),), {}, stubs=True).evaluation.graph,
    "read off the code": lambda: read_calls(Net(), stubs=True)[0],
}


@pytest.mark.parametrize("how", GRAPHS)
def test_the_region_is_what_comes_from_a_quant_stub(how: str):
    graph = GRAPHS[how]()
    assert operations(quant_stubs(graph)) == ["quant quant_stub"]
    inside = annotated_region(graph)
    found = operations(n for n in graph.nodes if n in inside and SEEN in n.meta)
    assert found == ["quant quant_stub", "inside linear", "add", "relu", "reshape"]


@pytest.mark.parametrize("how", GRAPHS)
def test_functionals_are_found_without_their_relu(how: str):
    assert {of(node): owner for node, owner in functionals(GRAPHS[how]()).items()} == {"add": "join"}


def test_without_being_asked_nobody_notes_stubs():
    graph = record(Net(), (torch.rand(3, 4),), {}).evaluation.graph
    assert not quant_stubs(graph)
    assert not functionals(graph)


def test_classes_of_the_same_name_are_no_stubs():
    own = type("QuantStub", (nn.Module,), {})()
    derived = type("Mine", (QuantStub,), {})()
    assert (stub_function(own), stub_function(derived)) == (None, quant_stub)


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
    assert is_switched_off(dict(net.named_modules()), "a.b") is expected


def test_float_models_are_not_taken_for_prepared_ones():
    assert prepared_by_torch_ao(Net()) is None  # FloatFunctional is a class of torch.ao.nn.quantized
