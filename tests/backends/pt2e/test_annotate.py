from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

pytest.importorskip("torchao")

from torchao.quantization.pt2e import MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver

from lq.backends.base import recorded_call
from lq.backends.prepare import plan_of as prepared_plan
from lq.backends.prepare import prepare
from lq.backends.pt2e.annotate import annotate
from lq.backends.pt2e.quantizers import make_quantizer
from lq.backends.pt2e.vendor_plan import VendorPlan
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from tests.backends.pt2e.quantizers import OnlyLinear, Results, TakesApart, only_linear_of

X, IMAGES = torch.rand(2, 4), torch.rand(2, 3, 4, 4)
DYNAMIC = {
    "is_dynamic": True,
    "observer_or_fake_quant_ctr": MovingAverageMinMaxObserver.with_args(averaging_constant=1),
}
PER_CHANNEL = {
    "qscheme": torch.per_channel_affine,
    "ch_axis": 1,
    "observer_or_fake_quant_ctr": MovingAveragePerChannelMinMaxObserver,
}


def plan_of(net: nn.Module, quantizer: Any, *args: Tensor) -> VendorPlan:
    return annotate(recorded_call(net, args or (X,)), quantizer)


def rounded(plan: VendorPlan) -> list[tuple[str, tuple[str, ...] | None, int]]:
    return [(t.node.name, t.readers and tuple(n.name for n in t.readers), t.group) for t in plan.tensors]


def weights(plan: VendorPlan) -> dict[str, WeightSpec]:
    return {node.name: spec for node, spec in plan.weights.items()}


def test_inputs_weights_and_outputs():
    plan = plan_of(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), OnlyLinear())
    assert weights(plan) == {name: WeightSpec(-7, 7, per_channel=False) for name in ("_0", "_2")}
    assert rounded(plan) == [("input_1", None, 0), ("_0", None, 1), ("_1", None, 2), ("_2", None, 3)]
    assert {t.spec for t in plan.tensors} == {ActivationSpec()}


def test_a_tensor_that_others_read_in_float():
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(x) + self.b(x) + x
            return y

    assert rounded(plan_of(Fork(), OnlyLinear()))[0] == ("x", ("a", "b"), 0)


def test_a_view_of_what_is_overwritten_is_still_the_input_of_its_reader():
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(x)
            part = y[:, :2]
            y += 1
            z: Tensor = self.fc(part)
            return z

    assert rounded(plan_of(Overwrites(), OnlyLinear())) == [("overwritten", ("fc",), 0), ("fc", None, 1)]
    qconfig = QConfig(backend="pt2e", quantizer="tests.backends.pt2e.quantizers.OnlyLinear")
    assert [t.after for t in prepared_plan(prepare(Overwrites(), qconfig, (X,))).tensors] == ["overwritten", "fc"]


def test_one_of_several_results():
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            left, right = torch.tanh(x).chunk(2, dim=1)
            return torch.cat([left, self.fc(right)], dim=1)

    assert rounded(plan_of(Halves(), OnlyLinear()))[0] == ("getitem_1", None, 0)


def test_quantizers_that_choose_modules_by_name_see_the_users_names():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.body(x))
            return y

    assert list(weights(plan_of(Two(), only_linear_of("body")))) == ["body_0"]
    assert list(weights(plan_of(Two(), only_linear_of("head")))) == ["head"]


def test_shared_grids_are_one_group():
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.c(torch.cat([self.a(x), self.b(x)], dim=1))
            return y

    quantizer = make_quantizer(QConfig(backend="pt2e", quantizer="xnnpack"))
    groups = {t.node.name: t.group for t in plan_of(Joined(), quantizer, torch.rand(2, 3, 4, 4)).tensors}
    assert groups["a"] == groups["b"] == groups["cat"]
    assert len(set(groups.values())) == 3  # the input, these three, and the output


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))
        return y


def test_who_rounds_between_a_convolution_and_its_batch_norm_is_asked_without():
    assert rounded(plan_of(Normed(), Results(), IMAGES)) == [("bn", None, 0), ("relu", None, 1), ("fc", None, 2)]


def test_a_quantizer_that_is_not_for_qat_sees_no_batch_norm():
    options = {"is_qat": False}
    quantizer = make_quantizer(QConfig(backend="pt2e", quantizer="x86_inductor", quantizer_options=options))
    plan = plan_of(Normed(), quantizer, IMAGES)
    assert list(weights(plan)) == ["conv", "fc"]
    assert [name for name, _, _ in rounded(plan)] == ["x", "mean"]
    assert not plan.notes


def test_what_the_vendor_computes_inside_is_left_out_with_a_note():
    plan = plan_of(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), TakesApart())
    assert [name for name, _, _ in rounded(plan)] == ["input_1", "_0", "_1", "_2"]
    assert plan.notes == ("lq deviates from the quantizer: what `1` computes inside is not rounded",)


@pytest.mark.parametrize("ends", [{}, {"quant_min": None, "quant_max": None}])
def test_unsigned_integers_around_a_zero_in_the_middle_are_signed_ones(ends):
    quantizer = OnlyLinear({"qscheme": torch.per_tensor_symmetric, **ends})
    specs = {t.spec for t in plan_of(nn.Sequential(nn.Linear(4, 4)), quantizer).tensors}
    assert specs == {ActivationSpec(-128, 127, symmetric=True)}


def test_layers_that_are_calls_are_layers():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.fc = nn.Parameter(torch.rand(4, 4)), weight_norm(nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(F.linear(x, self.weight))
            return y @ y.T

    plan = plan_of(Functional(), OnlyLinear())
    assert list(weights(plan)) == ["linear", "fc_linear"]
    assert rounded(plan) == [("x", None, 0), ("linear", None, 1), ("fc_linear", None, 2)]
    assert not plan.notes


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        (OnlyLinear(fixed=True), "wants a fixed scale for x"),
        (OnlyLinear(DYNAMIC), "wants x to be quantized dynamically, which is not trained"),
        (OnlyLinear({"dtype": torch.int16, "quant_min": -32768, "quant_max": 32767}), "has 65536 levels; 2 to 8 bits"),
        (OnlyLinear(weight={"qscheme": torch.per_tensor_affine}), "the weight of fc as .*affine; lq has symmetric"),
        (OnlyLinear(PER_CHANNEL), "lq has one scale per tensor only"),
    ],
)
def test_what_lq_does_not_have_is_refused(quantizer, message):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x)
            return y

    with pytest.raises(ValueError, match=message):
        plan_of(Net(), quantizer)
