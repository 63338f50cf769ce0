from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.backends.prepare import plan_of, prepare
from lq.config.qconfig import QConfig
from lq.conversion.convert import convert
from lq.metrics import sqnr
from lq.ptq import calibrate


def fused(*layers: nn.Module) -> tuple[str, ...]:
    return plan_of(prepare(nn.Sequential(*layers))).layers[0].fused


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()), ("BatchNorm2d", "ReLU")),
        ((nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.ReLU6()), ("BatchNorm1d", "ReLU6")),
        ((nn.Conv3d(1, 2, 3), nn.SyncBatchNorm(2)), ("SyncBatchNorm",)),
        ((nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Hardtanh(0, 6)), ("BatchNorm1d", "ReLU6")),
        ((nn.Linear(1, 2), nn.ReLU()), ("ReLU",)),
        ((nn.Conv2d(1, 2, 3), nn.Identity(), nn.BatchNorm2d(2)), ("BatchNorm2d",)),
        ((nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)), ()),
        ((nn.Conv2d(1, 2, 3), nn.BatchNorm3d(2)), ()),
        ((nn.Linear(1, 2), nn.BatchNorm2d(2)), ()),
        ((nn.Conv2d(1, 2, 3), nn.LeakyReLU()), ()),
        ((nn.Conv2d(1, 2, 3), nn.Hardtanh(-1, 1)), ()),
        ((nn.Conv2d(1, 2, 3), nn.Dropout(), nn.BatchNorm2d(2)), ()),
    ],
)
def test_what_is_fused(layers: tuple[nn.Module, ...], expected: tuple[str, ...]):
    assert fused(*layers) == expected


class Shared(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.bn, self.kind = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.kind == "conv read twice":
            return self.bn(y) + y
        if self.kind == "conv called twice":
            return self.bn(self.a(y))
        return self.bn(y) + self.bn(self.b(x))


@pytest.mark.parametrize("kind", ["conv read twice", "conv called twice", "bn called twice"])
def test_batch_norm_stays_apart_where_it_is_not_the_layers_own(kind: str):
    prepared = prepare(Shared(kind), example_args=(torch.randn(2, 2, 4, 4),))
    assert plan_of(prepared).layers[0].fused == ()


class DoubledLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Hypernetwork(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * x.mean())


class Shaped(nn.Module):
    """A function of linear layers with a weight or bias of a shape that these do not have."""

    def __init__(self, function: Any, weight: tuple[int, ...], bias: tuple[int, ...] | None) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(weight))
        self.bias = None if bias is None else nn.Parameter(torch.randn(bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


def add_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x, weight)


class Net(nn.Module):
    """A layer, and something odd."""

    def __init__(self, odd: nn.Module) -> None:
        super().__init__()
        self.first, self.odd = nn.Linear(4, 4), odd

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.odd(x, x, x)[0] if isinstance(self.odd, nn.MultiheadAttention) else self.odd(x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Conv2d(4, 4, 4, padding="same"), "pads one side more"),
        (lambda: nn.LSTM(4, 4), "recurrent layers"),
        (lambda: Hypernetwork(4, 4), "its weight depends on the input"),
        (lambda: Shaped(F.linear, (4,), None), "its weight has the shape (4,)"),
        (lambda: Shaped(F.linear, (5, 4), (1, 5)), "its bias has the shape (1, 5), and that of a linear layer would"),
        (lambda: Shaped(F.linear, (5, 4), (1,)), "its bias has the shape (1,)"),
        (lambda: Shaped(add_product, (4, 5), (2, 5)), "its bias has the shape (2, 5)"),
        (lambda: Shaped(add_product, (4, 5), ()), "its bias has the shape ()"),
    ],
)
def test_what_stays_float_says_why(make, reason: str):
    odd = make()
    x = torch.randn(2, 4, 6, 4) if isinstance(odd, nn.Conv2d) else torch.randn(2, 4)
    rows = {row.name: row for row in plan_of(prepare(Net(odd), example_args=(x,))).layers}
    assert rows["first"].weight is not None
    (row,) = [row for name, row in rows.items() if name != "first"]
    assert row.name.startswith("odd")
    assert row.weight is None
    assert reason in row.reason


@pytest.mark.parametrize(("function", "weight"), [(F.linear, (5, 4)), (add_product, (4, 5))])
def test_a_bias_for_each_output_makes_a_linear_layer(function: Any, weight: tuple[int, ...]) -> None:
    prepared = prepare(Net(Shaped(function, weight, (5,))), example_args=(torch.randn(2, 4),))
    assert len(plan_of(prepared).quantized) == 2


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), ["odd"]),
        (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), ["odd"]),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), ["odd"]),
        (lambda: nn.utils.weight_norm(nn.Conv2d(4, 4, 1)), ["odd"]),
        (lambda: DoubledLinear(4, 4), ["odd"]),
        (
            lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
            ["odd.self_attn.linear", "odd.self_attn.out_proj", "odd.linear1", "odd.linear2"],
        ),
        (lambda: nn.MultiheadAttention(4, 2), ["odd.linear", "odd.out_proj"]),
    ],
)
def test_calls_are_quantized_whatever_makes_them(make, names: list[str]):
    odd = make().eval()
    x = torch.randn(8, 4, 6, 4) if isinstance(odd, nn.Conv2d) else torch.randn(8, 5, 4)
    net = Net(odd).eval()
    expected = net(x).detach()
    prepared = prepare(net, example_args=(x,))
    assert sorted(row.name for row in plan_of(prepared).quantized) == sorted(["first", *names])
    assert torch.equal(prepared(x), expected)
    calibrate(prepared, [x])
    with torch.no_grad():
        assert 20 < sqnr(expected, prepared(x)) < 60  # rounded, but not another value
        if not isinstance(odd, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
            assert sqnr(prepared(x), convert(prepared)(x)) > 39


class PlainLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_a_subclass_that_computes_the_same_is_quantized(bias: bool):
    prepared = prepare(nn.Sequential(PlainLinear(4, 2, bias=bias)), example_args=(torch.randn(3, 4),))
    assert plan_of(prepared).layers[0].weight is not None


def test_exclusions_are_rows_of_the_plan():
    plan = plan_of(prepare(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), QConfig(exclude=("1",))))
    assert [(row.name, row.reason) for row in plan.layers] == [("0", ""), ("1", "exclude '1'")]


@pytest.mark.parametrize(
    ("net", "x", "name"),
    [
        (nn.Linear(4, 2), torch.rand(8, 4), "linear"),
        (nn.Conv1d(4, 2, 1), torch.rand(8, 4, 3), "conv1d"),
        (nn.ConvTranspose2d(4, 2, 2), torch.rand(8, 4, 3, 3), "conv_transpose2d"),
    ],
)
def test_a_target_that_is_a_layer_itself_is_named_after_its_operation(net: nn.Module, x: Tensor, name: str):
    prepared = prepare(net, example_args=(x,))
    calibrate(prepared, [x])
    assert [row.name for row in plan_of(prepared).layers] == [name]
    assert sqnr(prepared(x), convert(prepared)(x)) > 40  # the same integers but for ties


def test_a_target_that_is_a_recurrent_layer_itself_has_no_row_without_a_name():
    prepared = prepare(nn.GRU(4, 3), QConfig(recurrence="int8"), example_args=(torch.rand(5, 2, 4),))
    plan = plan_of(prepared)
    assert [row.name for row in plan.layers] == ["weight_ih_l0", "weight_hh_l0"]
    assert "add" in plan.float_ops
