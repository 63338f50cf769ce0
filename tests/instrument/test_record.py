"""What a module does is noted, and it is afterwards as it was."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from lq.backends.prepare import plan_of, prepare, set_phase
from lq.conversion.convert import convert
from lq.conversion.graph import as_graph
from lq.instrument.attach import instrument_of
from lq.instrument.classes import place_of
from lq.instrument.record import record
from lq.metrics import sqnr
from lq.ptq import calibrate


class Stateful(nn.Module):
    """Counts, remembers, draws numbers and moves a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.calls, self.seen, self.table = 0, [], {"last": None}
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        self.table["last"] = x
        self.new = random.random()
        self.total += x.sum()
        return self.drop(self.bn(self.fc(x)))


def test_buffers_attributes_modes_and_random_numbers_are_restored() -> None:
    net, x = Stateful(), torch.randn(8, 4)
    net.bn.eval()
    torch.manual_seed(3)
    random.seed(3)
    expected = torch.rand(1), random.random()
    torch.manual_seed(3)
    random.seed(3)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    prepare(net, example_args=(x,))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    assert (net.calls, net.seen, net.table, hasattr(net, "new")) == (0, [], {"last": None}, False)
    assert (net.training, net.bn.training) == (True, False)
    assert (torch.rand(1), random.random()) == expected


def test_inputs_are_left_alone() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.fc(batch.pop("x").add_(1))

    x = torch.zeros(2, 4)
    batch = {"x": x}
    prepare(Writes(), example_args=(batch,))
    assert batch["x"] is x
    assert not x.any()


def test_a_module_that_fails_is_given_back_as_it_was() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).view(3, 5)

    net = Fails()
    with pytest.raises(ValueError, match="Fails cannot be called with the example: RuntimeError: shape"):
        prepare(net, example_args=(torch.randn(2, 4),))
    assert type(net) is Fails
    assert type(net.fc) is nn.Linear
    assert not any(place_of(module) for module in net.modules())


def test_a_module_that_cannot_be_called_in_training_is_recorded_in_evaluation() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    recording = record(net, (torch.randn(1, 4),), {})  # one sample has no variance
    assert recording.training is None
    assert [seen.operation for seen, _ in recording.evaluation.calls] == ["linear", "batch_norm"]


def test_lazy_layers_get_their_weights() -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
    assert len(plan_of(prepare(net, example_args=(torch.randn(2, 3),))).quantized) == 2


def test_numpy_and_scripted_children_are_named_not_passed_over() -> None:
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
            self.inner: Any = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(self.first(x))
            return self.last(y + torch.from_numpy(y.detach().numpy() * 0))

    x = torch.randn(16, 4)
    with pytest.warns(UserWarning, match=rf"from code that PyTorch does not show.*{__file__}:\d+"):
        prepared = prepare(Foreign(), example_args=(x,))
    assert [row.name for row in plan_of(prepared).quantized] == ["first", "last"]
    calibrate(prepared, [x])
    assert torch.isfinite(prepared.qat_state.min_val).all()


def test_what_an_autograd_function_calls_is_left_to_its_own_backward_pass() -> None:
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            return F.linear(x, weight)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            x, weight = ctx.saved_tensors
            return grad @ weight, grad.T @ x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.own = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return Scaled.apply(self.first(x), self.own.weight)

    rows = {row.name: row for row in plan_of(prepare(Net(), example_args=(torch.randn(2, 4),))).layers}
    assert rows["first"].weight is not None
    assert rows["own"].reason == "it runs inside of an autograd function, whose backward pass is not ours"


def test_branches_that_torch_compiles_are_refused_with_their_line() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            return torch.cond(x.sum() > 0, self.a, self.b, (x,))

    with pytest.raises(ValueError, match=r"test_record\.py:\d+, in forward calls torch\.cond, .*torch\.where"):
        prepare(Net(), example_args=(torch.ones(2, 4),))


class Transformed(nn.Module):
    """Calls a layer within a transform of torch.func."""

    def __init__(self, transform: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.own, self.last, self.transform = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2), transform

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.transform(lambda row: torch.tanh(self.own(row)), self.first(x)))


@pytest.mark.parametrize(
    "transform",
    [
        lambda function, x: torch.vmap(function)(x),
        lambda function, x: torch.vmap(torch.vmap(function))(x[:, None])[:, 0],
        lambda function, x: sum(torch.func.jvp(function, (x,), (torch.ones_like(x),))),
    ],
    ids=["vmap", "vmap of vmap", "jvp"],
)
def test_what_a_transform_of_torch_calls_is_left_in_float(transform: Any) -> None:
    net, x = Transformed(transform), torch.randn(8, 4)
    expected = net.eval()(x).detach()
    with pytest.warns(UserWarning, match=r"code that PyTorch does not show \(.*torch\.func.*test_record\.py"):
        prepared = prepare(net, example_args=(x,))
    plan = plan_of(prepared)
    assert [row.name for row in plan.quantized] == ["first", "last"]
    assert plan.in_float[0].reason == "it runs inside of a transform of torch.func"
    assert plan.in_float[0].work == 8 * 16
    calibrate(prepared, [x])
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    prepared.train()(x).sum().backward()
    assert all(p.grad is not None for name, p in net.named_parameters() if name.startswith(("first", "own", "last")))
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=False)
    fake, int8 = prepared.eval()(x), convert(prepared)(x)
    assert sqnr(expected, fake) > 20
    assert sqnr(fake, int8) > 39


def test_lists_of_tuples_of_tensors_are_restored() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.past = nn.Linear(4, 4), [(torch.zeros(2, 4), torch.ones(2, 4))]

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x + self.past[-1][0])
            self.past.append((x, y))
            return y

    net, x = Remembers(), torch.randn(2, 4)
    before = list(net.past)
    with pytest.warns(UserWarning, match="a tensor comes from code that PyTorch does not show"):
        prepared = prepare(net, example_args=(x,))
    as_graph(prepared)
    assert [[id(tensor) for tensor in pair] for pair in net.past] == [[id(t) for t in pair] for pair in before]


def test_attributes_that_stay_are_constants_and_may_hold_themselves() -> None:
    class Anchored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.anchors = nn.Linear(4, 4), {"level": [torch.ones(4)]}
            self.cycle: list[Any] = []
            self.cycle.append(self.cycle)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x) + self.anchors["level"][0]
            return y

    prepared = prepare(Anchored(), example_args=(torch.randn(2, 4),))  # a warning is an error
    assert [row.name for row in plan_of(prepared).quantized] == ["fc"]


def test_the_example_is_a_copy_that_no_checkpoint_holds() -> None:
    x = torch.randn(2000, 4)
    expected = x.clone()
    prepared = prepare(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), example_args=(x,))
    x.zero_()
    instrument = instrument_of(prepared)
    assert instrument is not None
    assert torch.equal(instrument.example[0][0], expected)
    assert len(pickle.dumps(prepared)) < x.nbytes


@pytest.mark.parametrize(
    ("norm", "name"), [(FrozenBatchNorm2d, "x"), (nn.SyncBatchNorm, "input"), (nn.BatchNorm2d, "input")]
)
def test_norms_may_be_called_by_keyword(norm: Any, name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.out = nn.Conv2d(3, 4, 3), norm(4), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(input=self.norm(**{name: self.conv(input=x)}).relu())

    x = torch.randn(2, 3, 8, 8)
    prepared = prepare(Net().eval(), example_args=(x,))
    calibrate(prepared, [x], show_progress=False)
    assert float(sqnr(prepared(x).detach(), convert(prepared)(x))) > 40
    set_phase(prepared.train(), fake_quant=True, observer=True, freeze_bn=True)
    prepared(x).sum().backward()
