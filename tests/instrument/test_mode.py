"""The running call: exceptions, threads, recursion, parts called alone, phases, autocast, compiled code."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from lq.backends.prepare import plan_of, prepare, set_phase, state_of
from lq.conversion.graph import as_graph
from lq.instrument.attach import instrument_of
from lq.ptq import calibrate
from tests.instrument.nets import Net, assert_same, images, ready, step


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.broken = nn.Linear(4, 4), nn.Linear(4, 2), False

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * torch.relu(self.first(x))
        if self.broken:
            raise OSError("no more data")
        return self.last(x)


def test_an_exception_leaves_nothing_behind() -> None:
    x = torch.randn(8, 4)
    net: Any = ready(Fails(), x, observer=True)
    expected, ranges = step(net, x), state_of(net).max_val.clone()
    net.broken = True
    with pytest.raises(OSError, match="no more data"):
        net(x * 9)
    net.broken = False
    assert torch.equal(state_of(net).max_val, ranges)
    net.load_state_dict(net.state_dict())  # drops what the observers saw of the call
    assert torch.overrides._len_torch_function_stack() == 0
    assert_same(expected, step(net, x))


class ReusesItsReLU(nn.Module):
    """As the blocks of a ResNet: once behind a layer, where it is absorbed, and once behind a float sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.relu = nn.Linear(4, 8), nn.Linear(8, 4), nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        return self.relu(self.last(self.relu(self.first(x))) + x)


@pytest.mark.parametrize("way", ["graph", "compiled"])
def test_an_activation_in_float_is_not_rounded_on_the_grid_of_an_earlier_call(way: str) -> None:
    x = torch.randn(64, 4)
    net: Any = ready(ReusesItsReLU(), x, observer=True).eval()
    with torch.no_grad():
        other = as_graph(net, ((x,), {})) if way == "graph" else torch.compile(net, backend="eager")
        assert torch.equal(net(x), other(x))


def test_the_users_lists_stay_theirs() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            parts = [self.a(x), self.b(x)]
            before = list(parts)
            y = self.c(torch.cat(parts, 1))
            assert all(a is b for a, b in zip(parts, before, strict=True))
            return y

    ready(Keeps(), torch.randn(8, 4), observer=True)(torch.randn(8, 4)).sum().backward()


def test_threads_have_calls_of_their_own() -> None:
    net = ready(Net(), images()).eval()
    batches = [images(i) for i in range(8)]
    with torch.no_grad():
        expected = [net(x) for x in batches]
    found: dict[int, Tensor] = {}

    def run(i: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                found[i] = net(batches[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(batches))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(torch.equal(found[i], y) for i, y in enumerate(expected))


def test_a_module_may_call_itself() -> None:
    class Recursive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor, depth: int = 2) -> Tensor:
            return self.fc(x) if depth == 0 else torch.relu(self.fc(self(x, depth - 1)))

    x = torch.randn(16, 4)
    net = Recursive()
    expected = net(x).detach()
    prepared = prepare(net, example_args=(x,))
    assert torch.equal(prepared(x), expected)
    calibrate(prepared, [x])
    assert len(plan_of(prepared).tensors) == 4  # the input, and what each of three calls returns
    difference = (prepared(x) - expected).norm() / expected.norm()
    assert 0 < difference < 0.1


def test_two_targets_of_one_model_know_nothing_of_each_other() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)))

    net, x = Pair(), torch.randn(8, 4)
    prepare(net.a, example_args=(x,))
    prepare(net.b, example_args=(x,))
    set_phase(net.a, fake_quant=True, observer=True, freeze_bn=False)
    net(x), net(x)
    assert torch.isfinite(state_of(net.a).min_val).all()
    assert not torch.isfinite(state_of(net.b).min_val).any()


def test_a_part_called_alone_is_quantized_as_within_the_whole() -> None:
    net = ready(Net(), images()).eval()
    seen: list[Tensor] = []
    handle = net.blocks[1].register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    with torch.no_grad():
        net(images(1))
        handle.remove()
        assert torch.equal(net.blocks[1](seen[0].clone()), seen[1])


def test_a_call_that_the_plan_does_not_know_runs_in_float_and_is_counted() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.often, self.seldom, self.more = nn.Linear(4, 4), nn.Linear(4, 4), False

        def forward(self, x: Tensor) -> Tensor:
            y = F.linear(self.often(x), self.often.weight)
            return F.linear(y, self.seldom.weight) if self.more else y

    x = torch.randn(8, 4)
    net: Any = ready(Sometimes(), x).eval()
    y = net(x)
    instrument = instrument_of(net)
    assert instrument is not None
    assert not instrument.unplanned
    net.more = True
    assert torch.equal(net(x), F.linear(y, net.seldom.weight))
    assert instrument.unplanned == {"linear": 1}


def test_inference_mode_does_not_poison_training() -> None:
    net = ready(Net(), images(), observer=True)
    with torch.inference_mode():
        net.eval()(images(1))
    net.train()(images(1)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_its_own_type_and_rounds_weights_in_float32(dtype: torch.dtype) -> None:
    net = ready(Net(), images(), observer=True)
    full = net(images(1)).detach()
    with torch.autocast("cpu", dtype):
        y = net(images(1))
    assert y.dtype == dtype
    y.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert (y - full).norm() < 0.2 * full.norm()


def test_a_compiled_step_leaves_no_mode_and_no_count_behind() -> None:
    net = ready(Net(), images())
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled, expected = torch.compile(net, backend=counter, fullgraph=True), step(net, images(1))
    for _ in range(3):
        assert_same(expected, step(net, images(1), call=compiled))
        assert torch.overrides._len_torch_function_stack() == 0
    assert counter.frame_count == 1
    assert_same(expected, step(net, images(1)))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")  # of dynamo's own
def test_children_that_are_compiled_alone_are_quantized() -> None:
    net = ready(Net(), images())
    expected = step(net, images(1))
    torch._dynamo.reset()
    for block in net.blocks:
        block.compile(backend="eager")
    assert_same(expected, step(net, images(1)))


class CompiledInside(nn.Module):
    """The user has compiled a part, in one of the ways there are."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.part: Any = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.last, self.way = nn.Linear(4, 2), way
        if way == "in place":
            self.part.compile(backend="aot_eager")
        elif way == "wrapped":
            self.part = torch.compile(self.part, backend="aot_eager")

    @torch.compile(backend="aot_eager")
    def compiled(self, x: Tensor) -> Tensor:
        return self.part(x) * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.compiled(x) if self.way == "method" else self.part(x))


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("way", ["in place", "wrapped", "method"])
def test_what_was_compiled_before_is_quantized(way: str, called: bool) -> None:
    torch._dynamo.reset()
    net, x = CompiledInside(way), torch.randn(8, 4)
    if called:
        net(x)
    prepared = prepare(net, example_args=(x,))
    calibrate(prepared, [x])
    assert len(plan_of(prepared).quantized) == 2
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=False)
    fake = prepared.eval()(x)
    torch.testing.assert_close(as_graph(prepared)(x), fake)
    set_phase(prepared, fake_quant=False, observer=False, freeze_bn=False)
    assert not torch.equal(prepared(x), fake)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap, torch.func.jacrev])
def test_gradients_of_torch_func_are_refused_with_what_to_write(transform: Any) -> None:
    net = prepare(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), example_args=(torch.randn(3, 4),))
    transformed = transform(lambda x: net(x).sum())
    transformed(torch.randn(3, 4))  # in float they go through
    set_phase(net, fake_quant=True, observer=True, freeze_bn=False)
    with pytest.raises(RuntimeError, match=r"^Sequential is fake-quantized, and torch\.func .* torch\.autograd\.grad"):
        transformed(torch.randn(3, 4))
