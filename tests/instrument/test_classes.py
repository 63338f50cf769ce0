"""The user's object stays what it is: class, tree, keys, parameters, copies, hooks and parametrizations."""

from __future__ import annotations

import copy
import pickle
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from lq.backends.prepare import plan_of, prepare
from lq.core.own_class import own_class
from lq.instrument.attach import detach
from lq.instrument.classes import instrumented, place_of
from tests.instrument.nets import Block, Net, assert_same, images, ready, step


def test_identity_class_tree_keys_and_parameters_stay() -> None:
    net = Net()
    modules, parameters, keys = dict(net.named_modules()), list(net.parameters()), list(net.state_dict())
    prepared = ready(net, images())
    assert prepared is net
    assert isinstance(net, Net)
    assert (type(net).__name__, type(net).__module__, own_class(net)) == ("Net", Net.__module__, Net)
    assert [id(p) for p in net.parameters()] == [id(p) for p in parameters]
    assert [key for key in net.state_dict() if not key.startswith("qat_state.")] == keys
    assert all(net.get_submodule(name) is module for name, module in modules.items())


def test_instances_share_one_subclass_and_get_their_own_class_back() -> None:
    net = prepare(Net(), example_args=(images(),))
    assert type(net.blocks[0]) is type(net.blocks[1]) is instrumented(Block)
    detach(net)
    assert not any(place_of(module) for module in net.modules())
    assert type(net.blocks[0]) is Block


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_compute_the_same_and_share_nothing(copied: Any) -> None:
    net = ready(Net(), images(), observer=True)
    twin = copied(net)
    assert_same(step(net, images(1)), step(twin, images(1)))
    with torch.no_grad():
        twin.qat_state.max_val.mul_(2)
        twin.stem.weight.zero_()
    assert not torch.equal(net(images(1)), twin(images(1)))


def test_copies_of_a_part_drag_nothing_along() -> None:
    net = ready(Net(), images())
    part = copy.deepcopy(net.blocks[0])
    assert part(torch.randn(1, 4, 5, 5)).shape == (1, 4, 5, 5)
    assert sum(p.numel() for p in part.parameters()) == sum(p.numel() for p in Block().parameters())


def test_a_forward_on_the_instance_is_the_one_that_runs() -> None:
    net = Block()
    net.forward = lambda x: net.conv2(torch.relu(net.conv1(x)))  # type: ignore[method-assign]
    x = torch.randn(4, 4, 5, 5)
    expected = net(x).detach()
    prepared = prepare(net, example_args=(x,))
    assert torch.equal(prepared.eval()(x), expected)
    assert [row.name for row in plan_of(prepared).quantized] == ["conv1", "conv2"]
    detach(prepared)
    assert torch.equal(prepared(x), expected)


def test_a_parametrization_is_quantized_behind_and_can_be_removed() -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(16, 4)
    prepared = ready(net, x)
    assert [row.name for row in plan_of(prepared).quantized] == ["0", "2"]
    before = step(prepared, x)
    assert {"0.parametrizations.weight.original0", "0.parametrizations.weight.original1"} <= before.keys()
    parametrize.remove_parametrizations(prepared[0], "weight")
    assert not parametrize.is_parametrized(prepared[0])
    torch.testing.assert_close(step(prepared, x)["y"], before["y"])


class Registers(nn.Module):
    """Wants an argument of those who inherit from it."""

    known: ClassVar[list[type]] = []

    def __init_subclass__(cls, kind: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Registers.known.append(cls)


class Registered(Registers, kind="net"):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def test_classes_that_register_their_subclasses_do_not_see_ours() -> None:
    prepare(Registered(), example_args=(torch.randn(2, 4),))
    assert Registers.known == [Registered]


def test_hooks_see_what_they_always_saw() -> None:
    net, plain = Net(), Net()
    plain.load_state_dict(net.state_dict())
    seen: dict[str, list[Tensor]] = {"net": [], "plain": []}
    for name, model in (("net", net), ("plain", plain)):
        for layer in (model.blocks[0].conv1, model.blocks[0].bn1):
            layer.register_forward_hook(lambda module, args, output, name=name: seen[name].append(output.clone()))
    ready(net, images(), frozen=True).eval()
    seen["net"].clear()
    x = images(1)
    net(x), plain.eval()(x)
    for ours, theirs in zip(seen["net"], seen["plain"], strict=True):
        # Not folded, only rounded: another layer's output would differ by its whole size.
        assert 0 < (ours - theirs).norm() < 0.1 * theirs.norm()


def test_a_sequential_counts_numbers_slices_and_calls_its_own_children_only() -> None:
    net = ready(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(8, 4), observer=True)
    updates: list[int] = []
    state: Any = net.qat_state
    update = state.update
    state.update = lambda: updates.append(1) or update()
    net(torch.randn(8, 4))
    assert len(updates) == 1
    assert (len(net), net[-1].out_features, len(list(net)), len(net[:2])) == (3, 2, 3, 2)
    net[-1] = nn.Linear(4, 5)
    net.append(nn.ReLU())
    assert net(torch.randn(8, 4)).shape == (8, 5)
    assert isinstance(net[-1], nn.ReLU)


def test_copies_of_a_parametrized_part_are_independent() -> None:
    block = parametrizations.weight_norm(nn.Linear(4, 4))
    net = nn.Sequential(block, nn.ReLU(), copy.deepcopy(block))
    calls: list[str] = []
    for name in ("0", "2"):
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    x = torch.randn(8, 4)
    prepared = ready(net, x)
    assert [row.name for row in plan_of(prepared).quantized] == ["0", "2"]
    twin, quantized = copy.deepcopy(prepared).eval(), prepared.eval()(x)
    calls.clear()
    prepared(x)
    assert calls == ["0", "2"]
    detach(twin)
    assert not any(place_of(module) for module in twin.modules())
    assert torch.equal(prepared(x), quantized)
    assert not torch.equal(twin(x), quantized)
