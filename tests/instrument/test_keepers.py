"""Values that somebody keeps, in an attribute or by a hook, stay what they were: nothing is rounded in their memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.backends.prepare import plan_of, prepare, prepare_again, qconfig_of, set_phase
from lq.instrument.attach import instrument_of
from lq.metrics import sqnr
from lq.ptq import calibrate
from tests.instrument.nets import assert_same, images, ready, step


class Block(nn.Module):
    """A module around a convolution, as many projects have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class Keeps(nn.Module):
    """Keeps what lies in front of its BatchNorm, and what lies behind it."""

    def __init__(self, keep: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.block, self.norm, self.act, self.last = Block(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
        self.keep, self.kept = keep, list[Tensor]()
        self.norm.bias.data += 0.5

    def forward(self, x: Tensor) -> Tensor:
        self.kept = []
        y = self.block(x)
        self.keep(self, y)
        z = self.norm(y)
        self.keep(self, z)
        out: Tensor = self.last(self.act(z))
        return out


def in_a_list(net: Any, y: Tensor) -> None:
    net.kept.append(y)


def in_training(net: Any, y: Tensor) -> None:
    if net.training:
        net.kept.append(y)


def nowhere(net: Any, y: Tensor) -> None:
    """By hooks, if at all."""


def expected_in(net: Any, x: Tensor, statistics: bool) -> list[Tensor]:
    y = F.conv2d(x, net.block.conv.weight, net.block.conv.bias)
    norm = net.norm
    if statistics:
        return [y, F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)]
    return [y, F.batch_norm(y, None, None, norm.weight, norm.bias, training=True)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("freeze_bn", [False, True])
@pytest.mark.parametrize("given", [True, False], ids=["recorded", "read off the code"])
@pytest.mark.parametrize("keep", [in_a_list, in_training])
def test_what_a_module_keeps_as_an_attribute_stays_what_it_was(
    keep: Callable[[Any, Tensor], None], given: bool, freeze_bn: bool, training: bool
) -> None:
    torch.manual_seed(0)
    net, x = Keeps(keep), images()
    prepared: Any = prepare(net, example_args=(x,)) if given else prepare(net)
    calibrate(prepared, [x], show_progress=False)
    set_phase(prepared.train(training), fake_quant=True, observer=False, freeze_bn=freeze_bn)
    wanted = expected_in(net, x, statistics=freeze_bn or not training)
    prepared(x)
    assert len(net.kept) == (2 if training or keep is in_a_list else 0)
    assert all(sqnr(expected, found) > 30 for expected, found in zip(wanted, net.kept, strict=False))


def test_a_buffer_keeps_what_it_is_given() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
            self.register_buffer("features", None)

        def forward(self, x: Tensor) -> Tensor:
            self.features = self.a(x)
            y: Tensor = self.b(F.relu(self.features))
            return y

    x = torch.randn(16, 4)
    prepared: Any = ready(Features(), x)
    prepared(x)
    assert sqnr(F.linear(x, prepared.a.weight, prepared.a.bias), prepared.features) > 30


def keep_input(seen: list[Tensor]) -> Callable[..., None]:
    return lambda module, args, *output: seen.append(args[0])


def keep_output(seen: list[Tensor]) -> Callable[..., None]:
    return lambda module, args, output: seen.append(output)


HOOKS: dict[str, tuple[Callable[[Any, list[Tensor]], Any], int]] = {
    "of the ReLU, before": (lambda net, seen: net.act.register_forward_pre_hook(keep_input(seen)), 1),
    "of the ReLU, behind": (lambda net, seen: net.act.register_forward_hook(keep_input(seen)), 1),
    "of the module around the layer": (lambda net, seen: net.block.register_forward_hook(keep_output(seen)), 0),
    "of the layer": (lambda net, seen: net.block.conv.register_forward_hook(keep_output(seen)), 0),
    "of the BatchNorm, before": (lambda net, seen: net.norm.register_forward_pre_hook(keep_input(seen)), 0),
    "of the BatchNorm, behind": (lambda net, seen: net.norm.register_forward_hook(keep_output(seen)), 1),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", HOOKS)
def test_what_a_hook_keeps_stays_what_it_was(kind: str, training: bool) -> None:
    torch.manual_seed(0)
    x, (register, which) = images(), HOOKS[kind]
    prepared: Any = ready(Keeps(nowhere), x, frozen=True)
    prepared.train(training)
    seen: list[Tensor] = []
    register(prepared, seen)
    prepared(x)
    assert sqnr(expected_in(prepared, x, statistics=True)[which], seen[0]) > 30


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["block", "block.conv", "norm", "act", "last"])
def test_a_hook_of_the_backward_pass_changes_nothing(name: str, frozen: bool) -> None:
    torch.manual_seed(0)
    x, calls = images().requires_grad_(), []
    prepared = ready(Keeps(nowhere), x, frozen=frozen, observer=True)
    twin = copy.deepcopy(prepared)
    twin.get_submodule(name).register_full_backward_hook(lambda *given: calls.append(given))
    assert_same(step(prepared, x), step(twin, x))
    assert len(calls) == 1
    instrument = instrument_of(twin)
    assert instrument is not None
    assert not instrument.unplanned


def test_an_activation_that_is_called_alone_leaves_its_input_as_it_is() -> None:
    x = torch.randn(8, 4)
    prepared: Any = ready(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), x).eval()
    y = torch.randn(8, 4)
    given = y.clone()
    with torch.no_grad():
        rounded = prepared[1](y)
    assert torch.equal(y, given)
    assert rounded.unique().numel() <= 256
    assert rounded.min() == 0


def test_a_plan_of_before_watches_the_layer_and_its_batch_norm() -> None:
    x = images()
    prepared = ready(Keeps(nowhere), x)
    plain = plan_of(prepared).to_dict()
    for row in plain["sites"]["layers"]:
        for name in ("left", "entered", "kept"):
            del row[name]
    for row in plain["sites"]["tensors"]:
        del row["entered"]
    again: Any = prepare_again(Keeps(nowhere), qconfig_of(prepared), plain)
    again.load_state_dict(prepared.state_dict())
    seen: list[Tensor] = []
    again.eval().block.conv.register_forward_hook(keep_output(seen))
    assert torch.equal(again(x), prepared.eval()(x))
    assert sqnr(expected_in(again, x, statistics=True)[0], seen[0]) > 30
