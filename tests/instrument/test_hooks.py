"""Forward hooks that came after the plan may call what they like: no call of the module is taken for theirs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.checkpoint import checkpoint

from lq.backends.prepare import prepare, set_phase
from lq.conversion.graph import as_graph
from lq.instrument.attach import instrument_of
from lq.instrument.hooks import first_unknown, hooks_so_far
from lq.ptq import calibrate


class Net(nn.Module):
    """A mean of its own, an absorbed ReLU by function, and a dropout that is no place of the plan."""

    def __init__(self, saves: bool = False) -> None:
        super().__init__()
        self.conv, self.drop, self.fc, self.saves = nn.Conv2d(1, 4, 3), nn.Dropout(0.5), nn.Linear(4, 3), saves

    def body(self, x: Tensor) -> Tensor:
        return torch.relu(self.drop(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(self.body, x, use_reentrant=False) if self.saves else self.body(x)
        return self.fc(y.mean((2, 3)))  # type: ignore[no-any-return]


def statistics(seen: list[Tensor], module: nn.Module, args: Any, out: Tensor) -> None:
    seen.append(torch.relu(F.linear(out.mean((2, 3)), torch.ones(2, 4))).mean().detach())


class Looking:
    """A hook that is an object."""

    def __init__(self, seen: list[Tensor]) -> None:
        self.seen = seen

    def __call__(self, module: nn.Module, args: Any, out: Tensor) -> None:
        statistics(self.seen, module, args, out)

    def before(self, module: nn.Module, args: Any) -> None:
        statistics(self.seen, module, args, args[0].expand(-1, 4, -1, -1))


HOOKS: dict[str, Callable[[Net, list[Tensor]], Any]] = {
    "lambda": lambda net, seen: net.conv.register_forward_hook(lambda *given: statistics(seen, *given)),
    "partial": lambda net, seen: net.conv.register_forward_hook(partial(statistics, seen)),
    "object": lambda net, seen: net.conv.register_forward_hook(Looking(seen)),
    "method, before": lambda net, seen: net.conv.register_forward_pre_hook(Looking(seen).before),
    "that calls a part": lambda net, seen: net.conv.register_forward_hook(
        lambda module, args, out: seen.append(net.fc(net.drop(out).mean((2, 3))).detach())
    ),
    "of all modules": lambda net, seen: register_module_forward_hook(
        lambda module, *given: statistics(seen, module, *given) if isinstance(module, nn.Dropout) else None
    ),
    "of a module without calls": lambda net, seen: net.drop.register_forward_hook(partial(statistics, seen)),
}


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(8, 1, 6, 6)


@pytest.mark.parametrize("kind", HOOKS)
def test_the_calls_of_a_later_hook_are_not_the_modules(kind: str, x: Tensor) -> None:
    prepared = prepare(Net().eval(), example_args=(x,))
    calibrate(prepared, [x])
    expected, seen = prepared(x), []
    handle = HOOKS[kind](prepared, seen)  # type: ignore[arg-type]
    assert torch.equal(prepared(x), expected)
    assert len(seen) == 1
    twin = copy.deepcopy(prepared)
    assert torch.equal(twin(x), expected)
    seen.clear()
    graph = as_graph(prepared, ((x,), {}))
    assert torch.equal(graph(x), expected)
    assert not seen, "an export does not run them"
    assert torch.equal(prepared(x), expected)
    assert len(seen) == 1, "afterwards they are there again"
    handle.remove()
    assert torch.equal(prepared(x), expected)
    assert not instrument_of(prepared).unplanned  # type: ignore[union-attr]
    plain = as_graph(prepare(Net().eval(), example_args=(x,)), ((x,), {}))
    assert [node.name for node in graph.graph.nodes] == [node.name for node in plain.graph.nodes]


def test_hooks_of_the_plan_stay_in_it(x: Tensor) -> None:
    net = Net().eval()
    net.conv.register_forward_hook(lambda module, args, out: torch.relu(out) * 0.5)
    prepared = prepare(net, example_args=(x,))
    calibrate(prepared, [x])
    expected = prepared(x)
    net.drop.register_forward_hook(partial(statistics, []))
    assert torch.equal(prepared(x), expected)


def test_what_comes_from_a_file_knows_its_hooks(x: Tensor) -> None:
    prepared = prepare(Net().eval(), example_args=(x,))
    calibrate(prepared, [x])
    again = pickle.loads(pickle.dumps(prepared))
    expected = again(x)
    again.conv.register_forward_hook(partial(statistics, []))
    assert torch.equal(again(x), expected)


def test_a_number_is_above_those_of_all_hooks() -> None:
    net = Net()
    handle = net.conv.register_forward_pre_hook(print)
    assert first_unknown(net) == hooks_so_far() == handle.id + 1
    net.conv._forward_hooks[handle.id + 100] = print  # of another process
    assert first_unknown(net) == handle.id + 101


@pytest.mark.parametrize("saves", [False, True], ids=["plain", "checkpointed"])
def test_gradients_are_those_without_the_hook(saves: bool, x: Tensor) -> None:
    prepared = prepare(Net(saves), example_args=(x,))
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    found = []
    for hooked in (False, True):
        twin = copy.deepcopy(prepared)
        if hooked:
            twin.conv.register_forward_hook(partial(statistics, []))
            twin.drop.register_forward_hook(partial(statistics, []))
        for _ in range(2):
            torch.manual_seed(1)
            twin.zero_grad()
            twin(x).square().sum().backward()
        found.append([p.grad for p in twin.parameters()])
        assert not instrument_of(twin).unplanned  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("freeze_bn", [False, True])
def test_what_a_hook_of_all_modules_keeps_stays_as_it_was(freeze_bn: bool) -> None:
    net, x = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        torch.randn(2, 3, 8, 8),
    )
    prepared = prepare(net, "portable", (x,))
    calibrate(prepared, [x], show_progress=False)
    set_phase(prepared.train(), fake_quant=True, observer=False, freeze_bn=freeze_bn)
    kept: list[tuple[str, Tensor, Tensor]] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            kept.append((type(module).__name__, output, output.detach().clone()))

    handle = register_module_forward_hook(keep)
    try:
        prepared(x)
    finally:
        handle.remove()
    assert len(kept) == 3
    assert all(torch.equal(output, then) for _, output, then in kept)
