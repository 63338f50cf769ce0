"""What happens at one call: which argument is the weight, which activation is absorbed, what is written in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.backends.prepare import is_planned, plan_of, prepare, set_phase, state_of
from lq.conversion.convert import convert
from lq.core.fake_quantize import FakeQuantize
from lq.instrument.attach import instrument_of
from lq.metrics import sqnr
from lq.ptq import calibrate
from tests.instrument.nets import ready, step


class Calls(nn.Module):
    """Has weights, and calls functions with them."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.b, self.square = (nn.Parameter(torch.randn(s)) for s in ((6, 4), (6,), (4, 4)))
        self.kernel, self.last, self.body = nn.Parameter(torch.randn(4, 4, 3)), nn.Linear(4, 4), body
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


BODIES: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "positional": (lambda n, x: F.linear(x, n.w, n.b), ["linear"]),
    "by name": (lambda n, x: F.linear(bias=n.b, weight=n.w, input=x), ["linear"]),
    "without a bias": (lambda n, x: F.linear(x, n.w), ["linear"]),
    "computed weight": (lambda n, x: F.linear(x, (n.w - n.w.mean()) / n.w.std()), ["linear"]),
    "addmm": (lambda n, x: torch.addmm(n.b, x.flatten(0, 1), n.w.T).view(*x.shape[:2], 6), ["addmm"]),
    "product": (lambda n, x: x @ n.w.T, ["matmul"]),
    "product by name": (lambda n, x: torch.relu(torch.matmul(input=x, other=n.w.T * 2)), ["matmul"]),
    "product of two dimensions": (lambda n, x: torch.mm(x.flatten(0, 1), n.w.T), ["mm"]),
    "convolution": (lambda n, x: F.conv1d(x.mT, n.kernel, padding=1).mT, ["conv1d"]),
    "tied": (lambda n, x: F.linear(torch.tanh(n.last(x)), n.last.weight.T @ n.square), ["last", "linear"]),
    "attention": (lambda n, x: n.attention(x, x, x)[0], ["attention.linear", "attention.out_proj"]),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_call_is_quantized_whoever_makes_it(name: str) -> None:
    body, layers = BODIES[name]
    net, x = Calls(body), torch.randn(8, 5, 4)
    expected = net.eval()(x).detach()
    prepared = prepare(net, example_args=(x,))
    assert sorted(row.name for row in plan_of(prepared).quantized) == sorted(layers)
    assert torch.equal(prepared(x), expected)
    calibrate(prepared, [x])
    with torch.no_grad():
        fake, int8 = prepared(x), convert(prepared)
        assert 20 < sqnr(expected, fake) < 60
        assert sqnr(fake, int8(x)) > 39
    found = step(prepared.train(), x)
    assert all(found[n].abs().max() > 0 for n, p in net.named_parameters() if n in found)
    used = {"tied": {"last.weight", "square"}, "attention": {"attention.in_proj_weight"}}.get(name)
    assert (used or {"kernel"} if name == "convolution" else used or {"w"}) <= found.keys()


class Joins(nn.Module):
    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.body = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2), body
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def added_in_place(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y += net.b(x)
    return net.c(net.relu(y))


def written_through_a_view(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y[:, :2] = net.b(x)[:, 2:]
    return net.c(y)


def rectified_and_read_under_the_old_name(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    net.relu(y)
    return net.c(y)


def kept_after_an_in_place_add(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = y
    y += net.b(x)
    return net.c(y * z)


@pytest.mark.parametrize(
    "body", [added_in_place, written_through_a_view, rectified_and_read_under_the_old_name, kept_after_an_in_place_add]
)
def test_what_is_written_in_place_keeps_its_meaning_and_its_gradients(body: Any) -> None:
    torch.manual_seed(0)
    x, plain, net = torch.randn(32, 4), Joins(body), Joins(body)
    net.load_state_dict(plain.state_dict())
    expected, got = step_of(plain, x), step(ready(net, 2 * x), x)  # nothing lies at the edge of a range
    for name, value in expected.items():
        # 7 bits for weights, 8 for activations; a wrong operand is off by its whole size
        assert (got[name] - value).norm() < 0.15 * value.norm(), name
    assert not torch.equal(got["y"], expected["y"])


def test_an_in_place_join_that_was_only_read_about_trains_too() -> None:
    net, x = prepare(Joins(added_in_place)), torch.randn(32, 4)
    assert is_planned(net)
    set_phase(net, fake_quant=True, observer=True, freeze_bn=False)
    for _ in range(3):
        net(x).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def step_of(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    y = net(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y).sin()).sum().backward()
    return {"y": y.detach(), **{name: p.grad for name, p in net.named_parameters() if p.grad is not None}}


def test_an_activation_is_absorbed_by_the_rounding_of_what_it_reads() -> None:
    x = torch.randn(64, 4)
    net = ready(nn.Sequential(nn.Linear(4, 4), nn.ReLU6(), nn.Linear(4, 2)), x).eval()
    assert [t.absorbs for t in plan_of(net).tensors] == ["none", "relu6", "none"]
    seen: list[Tensor] = []
    net[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        net(10 * x)
    scale, _, high = net.qat_state.qparams()[1]
    assert float(seen[0].min()) == 0.0
    assert float(seen[0].max()) == pytest.approx(float(high * scale))
    steps = seen[0] / scale
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)


def test_a_shared_activation_rounds_each_value_on_its_own_grid() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.relu(self.b(100 * self.relu(self.a(x)))))

    x = torch.randn(64, 4)
    net = ready(Twice(), x)
    highest = dict(zip(net.qat_state.names, net.qat_state.max_val.tolist(), strict=True))
    assert highest["fq_b"] > 10 * highest["fq_a"] > 0


@pytest.mark.parametrize("freeze_bn", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_parts_that_are_called_one_by_one_compute_what_the_whole_does(freeze_bn: bool, training: bool) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(8, 1, 6, 6)
    prepared: Any = prepare(net, example_args=(x,))
    calibrate(prepared, [x], show_progress=False)
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=freeze_bn)
    prepared.train(training)
    apart = x
    for part in prepared:
        apart = part(apart)
    torch.testing.assert_close(apart, prepared(x), rtol=0, atol=2 * float(prepared.qat_state.scale_zero_point()[0][-1]))


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in {"weight": 2.0, "bias": 0.5, "running_mean": 0.1, "running_var": 3.0}.items():
            self.register_buffer(name, torch.full((4,), value))

    def forward(self, x: Any) -> Any:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.reshape(1, -1, 1, 1) + (self.bias - self.running_mean * scale).reshape(1, -1, 1, 1)


def test_a_frozen_batch_norm_that_is_called_twice_has_a_site_for_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), FrozenBatchNorm2d()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.norm(self.first(self.norm(x))))
            return y

    net, x = Twice(), torch.rand(2, 4, 3, 3)
    expected = net(x).detach()
    prepared = prepare(net, example_args=(x,))
    after = [tensor.after for tensor in plan_of(prepared).tensors if tensor.after.startswith("norm")]
    assert after == ["norm.batch_norm", "norm.batch_norm_1"]
    calibrate(prepared, [x])
    with torch.no_grad():
        assert 20 < float(sqnr(expected, prepared(x))) < 60


class PreActivated(nn.Module):
    """A block as of pre-activation ResNets, by functions: the first ReLU reads what the addition needs, too."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(n, 4, 3, padding=1) for n in (1, 4, 4))
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return y + self.b(torch.relu(self.a(torch.relu(self.change(y)))))


@pytest.mark.parametrize("alone", [False, True], ids=["target", "part called alone"])
@pytest.mark.parametrize("change", [lambda y: y, lambda y: y.flip(2)], ids=["the same tensor", "another one"])
def test_an_activation_that_is_not_planned_is_not_taken_for_one_that_is(
    alone: bool, change: Callable[[Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    block, x = PreActivated(change).eval(), torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        exact = block(x)
    target = nn.Sequential(block, nn.Flatten(), nn.Linear(144, 2)) if alone else block
    prepared = prepare(target, example_args=(x,))
    calibrate(prepared, [x])
    calls: Counter[str] = Counter()
    for name, part in state_of(prepared).named_children():
        if isinstance(part, FakeQuantize):
            part.register_forward_hook(lambda *_, name=name: calls.update([name]))
    with torch.no_grad():
        assert sqnr(exact, block(x)) > 25
    assert set(calls.values()) == {1}, "each tensor is rounded once, by its own quantizer"


LEFT_ALONE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "one behind a rounded value": lambda net, x: torch.relu(net.b(torch.relu(x)).flip(2)),
    "one that reads the input": lambda net, x: torch.relu(net.b(x)).sigmoid() * torch.relu(x),
    "one behind an absorbed one": lambda net, x: net.b(x).relu().flip(2).relu() + x.flip(2).relu(),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_an_activation_that_the_plan_leaves_alone_is_neither_rounded_nor_counted_as_unknown(name: str) -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return LEFT_ALONE[name](self, x)

    x = 10 * torch.randn(2, 4, 6, 6)
    prepared = prepare(Net(), example_args=(x,))
    calibrate(prepared, [x])
    sites, calls = plan_of(prepared).sites, Counter[str]()
    assert sites is not None
    for part in map(state_of(prepared).get_submodule, sites.names):
        part.register_forward_hook(lambda part, *_: calls.update([sites.names[part.slot]]))
    with torch.no_grad():
        prepared(x)
    assert calls == Counter(sites.names[tensor.slot] for tensor in sites.tensors)
    instrument = instrument_of(prepared)
    assert instrument is not None
    assert not instrument.unplanned


class Between(nn.Module):
    """Something lies between a layer and its BatchNorm, in training alone."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.change = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), change

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.training:
            y = self.change(y)
        return torch.relu(self.norm(y))


@pytest.mark.parametrize("given", [True, False], ids=["recorded", "read off the code"])
@pytest.mark.parametrize("change", [lambda y: F.dropout(y, 0.5), torch.relu, lambda y: y.mul_(2)])
def test_a_batch_norm_is_not_folded_past_what_training_puts_in_between(
    change: Callable[[Tensor], Tensor], given: bool
) -> None:
    torch.manual_seed(0)
    net, x = Between(change), torch.randn(8, 1, 6, 6)
    net.norm.running_mean += 1.0  # type: ignore[operator]
    prepared = prepare(net, example_args=(x,)) if given else prepare(net)
    calibrate(prepared, [x])
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    torch.manual_seed(1)
    found = prepared.train()(x)
    torch.manual_seed(1)
    y, norm = change(F.conv2d(x, net.conv.weight, net.conv.bias)), net.norm
    expected = F.relu(F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias))
    range_of_plan = prepared.eval()(x).max()
    assert sqnr(expected.clamp(max=range_of_plan), found) > 25
    found.sum().backward()
    assert net.conv.weight.grad is not None


@pytest.mark.parametrize("name", ["conv", "norm"])
def test_a_batch_norm_learns_statistics_whatever_the_mode_of_its_layer_is(name: str) -> None:
    """As users do who let a BatchNorm follow a new domain, all else in evaluation, or who freeze it alone."""
    torch.manual_seed(0)
    net, x = Between(lambda y: y), torch.randn(8, 1, 6, 6)
    prepared: Any = prepare(net, example_args=(x,))
    calibrate(prepared, [x])
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=False)
    prepared.train().get_submodule(name).eval()
    norm = prepared.norm
    before, moves = norm.running_mean.clone(), norm.training
    with torch.no_grad():
        y = F.conv2d(x, net.conv.weight, net.conv.bias)
        expected = F.relu(F.batch_norm(y, before.clone(), norm.running_var.clone(), norm.weight, norm.bias, moves))
        assert sqnr(expected.clamp(max=state_of(prepared).max_val[-1]), prepared(x)) > 25
    assert torch.equal(norm.running_mean, before) == (not moves)
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    before = norm.running_mean.clone()
    prepared(x).sum().backward()
    assert torch.equal(norm.running_mean, before), "frozen statistics move in no mode"
