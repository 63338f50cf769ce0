from __future__ import annotations

import copy
import pickle
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
from torch import Tensor, fx, nn
from torch.ao import quantization as ao

from lq.backends.prepare import prepare, set_phase
from lq.config.qconfig import QConfig
from lq.conversion.graph import as_graph
from lq.lightning_module.target import (
    find_target,
    float_state,
    is_target_prepared,
    prepared_graph,
    target_of,
)
from tests.tiny import Tiny, Versioned, make_net

EAGER = QConfig(backend="eager")


class Direct(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 3)
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.norm(self.conv(x))).flatten(1))
        return y

    def helper(self) -> str:
        return "still here"


class MetricWithLayers(torchmetrics.Metric):
    """As a perceptual metric, which holds a network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)

    def update(self) -> None: ...
    def compute(self) -> None: ...


def test_find_target() -> None:
    module = Tiny()
    assert find_target(module) == "model"
    module.metric = MetricWithLayers()
    assert find_target(module) == "model", "a metric's network is not the model"
    assert find_target(module, "model") == "model"
    assert find_target(Direct()) == ""
    several = Tiny()
    several.head = nn.Sequential(nn.Linear(3, 3))
    assert find_target(several) == "", "its forward uses both"


def test_a_recurrent_layer_beside_the_head_belongs_to_the_model() -> None:
    class Sequences(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 8), nn.Sequential(nn.Linear(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][-1])  # type: ignore[no-any-return]

    assert find_target(Sequences()) == ""
    inner = Sequences()
    inner.head = nn.Sequential(inner.lstm, nn.Linear(8, 2))
    del inner.lstm
    assert find_target(inner) == "head"


class Listed(L.LightningModule):
    """Goes through a container of blocks itself, as forecasting networks do."""

    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        blocks: Any = self.blocks
        for block in blocks.values() if isinstance(blocks, nn.ModuleDict) else blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(
    "blocks",
    [nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)]), nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 2)})],
    ids=["list", "dict"],
)
def test_a_container_that_is_never_called_is_no_target(blocks: nn.Module) -> None:
    assert find_target(Listed(blocks)) == ""
    assert (
        find_target(Listed(nn.Sequential(blocks[0] if isinstance(blocks, nn.ModuleList) else blocks["a"]))) == "blocks"
    )


@pytest.mark.parametrize("make", [Tiny, Direct])
def test_find_target_is_the_same_when_it_is_prepared(make: Any) -> None:
    module = make()
    name = find_target(module)
    prepare(target_of(module, name))
    assert is_target_prepared(module, name)
    assert find_target(module) == name


def test_single_layer_as_target_names_its_holder() -> None:
    with pytest.raises(ValueError, match=r"target='head' is a single Linear.*target=None, qconfig=QConfig\(include="):
        find_target(Direct(), "head")


def test_preparing_the_module_itself_keeps_the_module() -> None:
    module = Direct()
    before = dict(module.named_parameters())
    keys = module.state_dict().keys()
    x = torch.randn(2, 1, 6, 6)
    expected = module.eval()(x)
    assert prepare(module) is module
    assert isinstance(module, Direct)
    assert module.helper() == "still here"
    assert all(module.get_parameter(name) is parameter for name, parameter in before.items())
    assert keys <= module.state_dict().keys()
    assert float_state(module).keys() == keys
    assert torch.allclose(module.eval()(x), expected, atol=1e-6)
    graph = prepared_graph(module, "")
    assert isinstance(graph, fx.GraphModule)
    set_phase(graph, fake_quant=True, observer=True, freeze_bn=False)
    module.train()(x)
    assert torch.isfinite(module.qat_state.min_val).all()  # type: ignore[union-attr,operator,arg-type]
    assert torch.equal(module.eval()(x), graph.eval()(x))


@pytest.mark.parametrize("make", [Tiny, Direct])
def test_a_prepared_module_can_be_copied(make: Any) -> None:
    module = make()
    name = find_target(module)
    prepare(target_of(module, name))
    twin = copy.deepcopy(module)
    x = torch.randn(2, 1, 6, 6)
    assert torch.equal(twin.eval()(x), module.eval()(x))
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(twin(x), module(x)), "the copy shares parameters"


@pytest.mark.parametrize("make", [Tiny, Direct])
def test_a_prepared_module_pickles(make: Any) -> None:
    module = make()
    name = find_target(module)
    prepare(target_of(module, name))
    x = torch.randn(2, 1, 6, 6)
    for twin in (pickle.loads(pickle.dumps(module)), pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(module))))):
        assert isinstance(twin, make)
        assert is_target_prepared(twin, name)
        assert torch.equal(twin.eval()(x), module.eval()(x))
        assert twin.state_dict().keys() == module.state_dict().keys()
        set_phase(prepared_graph(twin, name), fake_quant=True, observer=True, freeze_bn=False)
        twin.train()(x).sum().backward()
        assert all(p.grad is not None for p in twin.parameters())
        assert not torch.equal(twin.eval()(x), module.eval()(x)), "the copy shares its state"


def test_prepared_graph_refuses_a_float_module() -> None:
    with pytest.raises(ValueError, match="not prepared"):
        prepared_graph(Direct(), "")


def test_float_state_of_a_net_is_that_of_the_float_net() -> None:
    net = make_net()
    keys = net.state_dict().keys()
    assert float_state(prepare(net)).keys() == keys


def test_float_state_keeps_the_versions_of_its_modules() -> None:
    prepared, other = prepare(Versioned().model), Versioned().model
    other.load_state_dict(float_state(prepared))
    assert torch.equal(other[6].factor, prepared.get_submodule("6").factor)


class InPlace(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.head = nn.Linear(4, 4), nn.SiLU(inplace=True), nn.Linear(4, 2)
        self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dequant(self.head(self.act(self.first(self.quant(x)))))
        return y


@pytest.mark.parametrize("qconfig", ["portable", EAGER], ids=["fx", "eager"])
def test_what_may_not_work_in_place_behind_a_fake_quantizer_does_not_in_the_lightning_module_either(
    qconfig: Any,
) -> None:
    module = prepare(InPlace(), qconfig)
    set_phase(module, fake_quant=True, observer=True, freeze_bn=False)
    x = torch.rand(3, 4)
    for _ in range(2):
        module.train()(x).sum().backward()
    assert torch.equal(module.eval()(x), as_graph(module)(x))


class Helpful(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(ao.QuantStub(), nn.Linear(4, 2), ao.DeQuantStub())
        self.classes = 2

    def helper(self) -> str:
        return "still here"


@pytest.mark.parametrize("qconfig", ["portable", EAGER], ids=["fx", "eager"])
def test_what_a_named_target_had_it_keeps(qconfig: Any) -> None:
    module = Tiny()
    module.model = Helpful()
    prepare(module.model, qconfig)
    assert (module.model.helper(), module.model.classes, len(module.model)) == ("still here", 2, 3)
