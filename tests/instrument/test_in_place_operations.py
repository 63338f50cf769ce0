from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.backends.prepare import plan_of, prepare, set_phase, state_of
from lq.conversion.convert import convert, in_float
from lq.conversion.graph import as_graph
from lq.metrics import sqnr
from lq.ptq import calibrate


class Net(nn.Module):
    def __init__(self, body: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.silu, self.relu = nn.SiLU(inplace=True), nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3, inplace=True)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def overwritten_and_read_again(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    F.relu_(y)
    return net.b(y)


def added_and_read_again(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.b(y)
    z.add_(y)
    return net.c(z)


def relu_on_one_branch(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.relu(y)
    return net.b(z) + y


def relu_on_a_view(net: Net, x: Tensor) -> Tensor:
    return net.b(F.relu(net.a(x).flatten(2).unflatten(2, (6, 6)), inplace=True))


def relu_positional(net: Net, x: Tensor) -> Tensor:
    y = net.a(x).permute(0, 1, 3, 2)
    return net.b(F.relu(y, True))


def relu_on_what_is_rounded_for_it(net: Net, x: Tensor) -> Tensor:
    y = x - net.a.bias.view(4, 1, 1)
    net.c(y)  # nobody reads the result, so that its input may be overwritten
    total = y.sum()
    return net.b(F.avg_pool2d(torch.relu_(y), 3, 1, 1)) + 0.01 * total


def filled(net: Net, x: Tensor) -> Tensor:
    return net.b(net.a(x).masked_fill_(x > 0, 0.5))


def without_a_twin(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.b(y.copy_(net.c(x)))


BODIES = [
    overwritten_and_read_again,
    added_and_read_again,
    relu_on_one_branch,
    relu_on_a_view,
    relu_positional,
    relu_on_what_is_rounded_for_it,
    filled,
    without_a_twin,
    lambda net, x: net.b(net.silu(net.a(x))),
    lambda net, x: net.b(net.drop(net.a(x))),
    lambda net, x: net.b(F.dropout(net.a(x), 0.1, net.training, True)),
    lambda net, x: net.b(net.a(x).mul_(0.5).add_(1.0)),
    lambda net, x: net.b(torch.relu_(net.silu(net.a(x)))),
    lambda net, x: net.b(F.hardswish(net.a(x), inplace=True) + F.hardtanh_(net.c(x), -1.0, 1.0)),
]


@pytest.mark.parametrize("body", BODIES)
def test_in_place_operations_train_and_keep_their_meaning(body: Callable[[Net, Tensor], Tensor]):
    net, x = Net(body), torch.randn(2, 4, 6, 6)
    flags = net.silu.inplace, net.relu.inplace, net.drop.inplace
    prepared = prepare(copy.deepcopy(net), example_args=(x,))
    for fake_quant in (False, True):
        set_phase(prepared, fake_quant=fake_quant, observer=fake_quant, freeze_bn=False)
        torch.manual_seed(0)
        y = prepared.train()(x.clone())
        torch.manual_seed(0)
        expected = net.train()(x.clone())
        # 7-bit weights and 8-bit activations of a few layers; a wrong operand is off by its whole size
        assert (y - expected).norm() < (0.05 if fake_quant else 1e-6) * expected.norm()
        y.square().sum().backward()
    assert (net.silu.inplace, net.relu.inplace, net.drop.inplace) == flags


def test_an_absorbed_relu_keeps_working_in_place_before_quantization_starts():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 4, 4)
    outputs: list[Tensor] = []
    net[0].register_forward_hook(lambda module, args, output: outputs.append(output))
    prepared = prepare(net, example_args=(x,))
    outputs.clear()
    prepared(x)
    assert (outputs[0] >= 0).all()


def test_float_parts_keep_working_in_place():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Upsample(scale_factor=2), nn.SiLU(inplace=True))
    prepared = prepare(copy.deepcopy(net))
    assert prepared.get_submodule("3").inplace


class Canvas(nn.Module):
    """Writes what a layer has computed into a tensor of zeros, part by part, as padding by hand does."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.last = how, nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4 * 6 * 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        canvas = x.new_zeros(len(x), 4, 8, 8)
        canvas[:, :2, 1:-1, 1:-1] = y[:, :2]
        canvas[:, 2:, 1:-1, 1:-1] = y[:, 2:]
        if self.how == "behind a view":
            canvas = canvas.flatten(2).view_as(canvas)
        z = self.last(canvas)
        out: Tensor = self.head(z.relu().flatten(1))
        return out + canvas.sum() if self.how == "read twice" else out


@pytest.mark.parametrize("how", ["read by a layer", "behind a view", "read twice"])
def test_a_tensor_that_is_written_part_by_part_is_rounded_where_it_is_read(how: str) -> None:
    net, x = Canvas(how), torch.randn(8, 2, 8, 8)
    prepared = prepare(net, example_args=(x,))
    assert [row.name for row in plan_of(prepared).quantized] == ["first", "last", "head"]
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    prepared.train()(x)
    state = state_of(prepared)
    assert all(state.observed()), [name for name, seen in zip(state.names, state.observed(), strict=True) if not seen]
    set_phase(prepared.eval(), fake_quant=True, observer=False, freeze_bn=True)
    graph = as_graph(prepared, ((x,), {}))
    assert torch.equal(graph(x), prepared(x))
    assert in_float(convert(graph)) == {}


def read_by_the_caller(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    y.relu_()
    return y


def relu_on_the_input(net: Net, x: Tensor) -> Tensor:
    net.relu(x)
    return net.b(x)


def written_again(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.relu(y)
    z.add_(1.0)
    return net.b(y)


@pytest.mark.parametrize(
    "body", [overwritten_and_read_again, read_by_the_caller, relu_on_the_input, written_again, relu_on_one_branch]
)
def test_what_an_activation_has_overwritten_is_calibrated_and_converted_as_it_is_read(
    body: Callable[[Net, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    net, x = Net(body).eval(), torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        exact = net(x.clone())
        prepared = prepare(net, example_args=(x.clone(),))
        calibrate(prepared, [x.clone()], call=lambda model, batch: model(batch.clone()))
        fake, int8 = prepared(x.clone()), convert(prepared)(x.clone())
    assert sqnr(exact, fake) > 25
    assert sqnr(fake, int8) > 35


OUTPUTS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "of a layer": lambda net, x: net.b(net.a(x)),
    "of a ReLU": lambda net, x: F.relu(net.a(x)),
    "of an addition": lambda net, x: net.a(x) + net.b(x),
    "a view": lambda net, x: net.a(x).flatten(1).view(-1)[2:],
}
WRITERS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda y: y.clamp_(-0.2, 0.2),
    "mask": lambda y: y.masked_fill_(y > 0.1, 0.0),
    "shape": lambda y: y.unsqueeze_(0),
    "part": lambda y: y[1:].mul_(2.0),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_loss_may_write_into_what_the_target_returns(output: str, writer: str, training: bool) -> None:
    """As it may in float, where no layer needs its result for the backward pass."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    prepared = prepare(Net(OUTPUTS[output]), example_args=(x,))
    calibrate(prepared, [x], show_progress=False)
    set_phase(prepared.train(training), fake_quant=True, observer=False, freeze_bn=False)
    gradients = []
    for copied in (True, False):
        prepared.zero_grad()
        y = prepared(x)
        y = y.clone() if copied else y
        WRITERS[writer](y)
        y.square().sum().backward()
        gradients.append([p.grad for p in prepared.parameters() if p.grad is not None])
    assert len(gradients[0]) >= 2
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def scaled(net: Net, y: Tensor) -> Tensor:
    return y.mul_(0.5) if net.training else y


def masked_through_a_view(net: Net, y: Tensor) -> Tensor:
    if net.training:
        y.flatten(1)[:, ::2] = 0.0
    return y


@pytest.mark.parametrize(("change", "given"), [(scaled, True), (scaled, False), (masked_through_a_view, True)])
def test_training_alone_may_write_into_what_a_layer_returns(
    change: Callable[[Net, Tensor], Tensor], given: bool
) -> None:
    """As layers do that drop blocks in place."""
    torch.manual_seed(0)
    net, x = Net(lambda net, x: net.b(change(net, net.a(x)))), torch.randn(2, 4, 6, 6)
    prepared = prepare(net, example_args=(x,)) if given else prepare(net)
    calibrate(prepared, [x], show_progress=False)
    set_phase(prepared.train(), fake_quant=True, observer=False, freeze_bn=False)
    y = prepared(x)
    y.sum().backward()
    with torch.no_grad():
        changed = change(net, F.conv2d(x, net.a.weight, net.a.bias, padding=1))
        expected = F.conv2d(changed, net.b.weight, net.b.bias, padding=1)
    assert sqnr(expected, y) > 25
    assert net.a.weight.grad is not None


def test_evaluation_without_gradients_copies_no_output() -> None:
    x = torch.randn(2, 4, 6, 6)
    prepared = prepare(Net(OUTPUTS["of a layer"]), example_args=(x,))
    calibrate(prepared, [x], show_progress=False)
    seen: list[Tensor] = []
    state_of(prepared).get_submodule("fq_b").register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        assert prepared.eval()(x) is seen[-1]
    assert prepared(x) is not seen[-1]
