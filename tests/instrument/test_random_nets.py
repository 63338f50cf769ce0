"""Random programs: with grids of 16 bits for activations, and weights that lie on theirs, nothing may change."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lq.backends.prepare import plan_of, prepare, prepare_again, qconfig_of, set_phase, state_of
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.conversion.graph import as_graph
from lq.instrument.attach import instrument_of
from lq.metrics import sqnr
from lq.ptq import calibrate

# What a program does with one or two of its tensors, in the order of its lines; {i} is one of a few modules.
STATEMENTS = [
    *["{y} = self.convs[{i}]({a})"] * 5,
    *["{y} = torch.relu({a})", "{y} = {a} + {b}"] * 4,
    *["{y} = self.norms[{i}]({a})", "{y} = self.act({a})", "{y} = self.inplace({a})", "{y} = {a}.flip(2)"] * 2,
    *["{y} = torch.relu(self.drop(self.convs[{i}]({a})))", "{y} = F.dropout({a}, 0.2, self.training)"] * 2,
    *["{y} = {a}\n    {y} += {b}", "{y} = {a}\n    {y}.relu_()", "{y} = F.relu(input={a})", "{y} = F.relu6({a})"],
    *["{y} = F.conv2d({a}, self.kernel, padding=1)", "{y} = self.fc({a})", "{y} = {a} * torch.sigmoid({b})"],
    *["{y} = torch.cat([{a}.chunk(2, 1)[1], {b}[:, :2]], 1)", "{y} = {a}.transpose(2, 3)", "{y} = {a}.mul_(0.5)"],
    *["{y} = F.avg_pool2d({a}, 3, 1, 1)", "{y} = F.leaky_relu({a}, 0.1)", "{y} = {a} + {a}.mean((2, 3), keepdim=True)"],
    *["{y} = torch.tanh({a})", "{y} = {a} * 2", "{y} = again(torch.relu, self.convs[{i}]({a}))"],
    "{y} = {a}\n    if self.training:\n        torch.relu({a}) + {a} * {a}",
    "{y} = {a}\n    for conv in self.convs[:2]:\n        {y} = {y} + torch.relu(conv({y}))",
]
OF_BLOCKS = ["{y} = self.block({a})"] * 3 + ["{y} = again(self.block, {a})"]
NAMES = {"torch": torch, "F": F, "again": partial(checkpoint, use_reentrant=False)}


class Parts(nn.Module):
    """What programs call; the weights are multiples of a 127th of the largest one in their channel."""

    source: str

    def __init__(self, block: nn.Module | None = None) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3 - 2 * (i % 2), padding=1 - i % 2) for i in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))
        self.act, self.inplace, self.drop = nn.ReLU(), nn.ReLU(inplace=True), nn.Dropout(0.2)
        self.fc, self.kernel = nn.Linear(6, 6), nn.Parameter(torch.randn(4, 4, 3, 3) / 5)
        if block is not None:
            self.block = block
        with torch.no_grad():
            for weight in (p for p in self.parameters() if p.dim() > 1):
                step = weight.flatten(1).abs().amax(1).view(-1, *[1] * (weight.dim() - 1)) / 127
                weight.copy_((weight / step).round() * step)


def program(chance: random.Random, statements: list[str], count: int, is_block: bool) -> type[Parts]:
    lines, tensors = [f"def forward(self, x):\n    v0 = {'x' if is_block else 'self.convs[0](x)'}"], ["v0"]
    for number in range(1, count + 1):
        a, b = (tensors[-1] if chance.random() < 0.5 else chance.choice(tensors) for _ in range(2))
        line = chance.choice(statements)
        lines.append("    " + line.format(y=f"v{number}", a=a, b=b, i=chance.randrange(4)))
        tensors.append(f"v{number}")
    lines.append(f"    return {tensors[-1]}" + ("" if is_block else f", {chance.choice(tensors)}"))
    source, namespace = "\n".join(lines), dict(NAMES)
    exec(compile(source, f"<{chance.random()}>", "exec"), namespace)
    return type("Block" if is_block else "Root", (Parts,), {"forward": namespace["forward"], "source": source})


def random_net(seed: int, x: Tensor) -> Parts:
    """The first program that PyTorch can train, and whose outputs are of a usual size."""
    chance = random.Random(seed)
    while True:
        torch.manual_seed(seed)
        block = program(chance, STATEMENTS, 3, True)
        net = program(chance, STATEMENTS + OF_BLOCKS, chance.randint(3, 9), False)(block())
        net.source = f"{net.source}\n\n# the block\n{block.source}"
        try:
            trained(copy.deepcopy(net), x)
        except RuntimeError:  # something that the backward pass needs is overwritten
            continue
        if all(0.03 < out.std() < 30 for out in evaluated(net, x)):
            return net


def trained(net: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Outputs in training, and all gradients."""
    torch.manual_seed(0)
    net.zero_grad()
    outputs = net.train()(x)
    sum((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in outputs).backward()
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in net.parameters()]
    return [out.detach() for out in outputs], torch.cat([grad.flatten() for grad in grads])


def evaluated(net: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [out.clone() for out in net.eval()(x)]


@contextmanager
def each_tensor_is_rounded_once(prepared: nn.Module) -> Iterator[None]:
    """Every quantizer is called as often as the plan says, and every call is in the plan."""
    state, sites, instrument = state_of(prepared), plan_of(prepared).sites, instrument_of(prepared)
    assert sites is not None
    assert instrument is not None
    calls: Counter[str] = Counter()
    note = lambda quantizer, *_: calls.update([sites.names[quantizer.slot]])  # noqa: E731
    hooks = [state.get_submodule(name).register_forward_hook(note) for name in sites.names]
    yield
    for hook in hooks:
        hook.remove()
    assert calls == Counter(sites.names[tensor.slot] for tensor in sites.tensors)
    assert not instrument.unplanned


def from_a_checkpoint(net: nn.Module, qconfig: QConfig, x: Tensor) -> nn.Module:
    first = prepare(copy.deepcopy(net), qconfig, (x,))
    return prepare_again(net, qconfig_of(first), plan_of(first).to_dict())


HOW: dict[str, Callable[[Any, QConfig, Tensor], nn.Module]] = {
    "recorded": lambda net, qconfig, x: prepare(net, qconfig, (x,)),
    "read off the code": lambda net, qconfig, x: prepare(net, qconfig),
    "from a checkpoint": from_a_checkpoint,
}


@pytest.mark.parametrize("seed", range(36))
def test_a_random_net_computes_what_it_did_and_rounds_what_was_planned(seed: int) -> None:
    x = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(seed))
    net = random_net(seed, x)
    print(net.source)
    exact, (trained_exactly, gradients) = evaluated(net, x), trained(copy.deepcopy(net), x)
    preset = ["portable", "openvino", "litert"][seed % 3]
    qconfig = QConfig(preset, weight=WeightSpec(-127, 127), activation=ActivationSpec(0, 65535))
    prepared = HOW[list(HOW)[seed // 3 % 3]](copy.deepcopy(net), qconfig, x)
    before = copy.deepcopy(prepared)
    calibrate(prepared, [x])
    with each_tensor_is_rounded_once(prepared):
        rounded = evaluated(prepared, x)
    assert all(sqnr(a, b) > 60 for a, b in zip(exact, rounded, strict=True))
    if seed % 6 == 0:
        assert all(sqnr(a, b) > 60 for a, b in zip(rounded, as_graph(prepared, ((x,), {}))(x), strict=True))
    evaluated(before, x)  # those that are planned at their first call
    for fake_quant in (False, True):
        set_phase(before, fake_quant=fake_quant, observer=not fake_quant, freeze_bn=False)
        with each_tensor_is_rounded_once(before):
            outputs, found = trained(before, x)
        assert all(sqnr(a, b) > (60 if fake_quant else 100) for a, b in zip(trained_exactly, outputs, strict=True))
        assert (found - gradients).norm() < 0.2 * gradients.norm()  # a ReLU may take a value close to 0 for another
