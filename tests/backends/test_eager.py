from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as ao
from torch.ao.nn.quantized import FloatFunctional
from torch.utils.checkpoint import checkpoint

from lq.backends.prepare import plan_of, prepare, set_phase, state_of
from lq.compat.deprecations import quiet_torch_ao
from lq.config.qconfig import QConfig
from lq.conversion.convert import convert
from lq.conversion.graph import as_graph
from lq.conversion.int8 import Int8Layer
from lq.metrics import sqnr
from lq.models.annotated import AnnotatedMobileNetV2
from lq.ptq import calibrate
from tests.backends.annotated import Functionals, batch_norm_statistics

EAGER = QConfig(backend="eager")
X = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
COLOUR = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def reasons(prepared: nn.Module) -> dict[str, str]:
    return {row.name: row.reason for row in plan_of(prepared).layers if row.weight is None}


def int8_noise(prepared: Any, x: Tensor) -> float:
    """SQNR in dB of the int8 model against the fake-quantized one."""
    calibrate(prepared, [x])
    with torch.no_grad():
        return float(sqnr(prepared.eval()(x), convert(prepared)(x)))


def test_the_tutorials_network_is_quantized_as_it_says_and_keeps_its_keys():
    net = AnnotatedMobileNetV2()
    batch_norm_statistics(net, X)
    keys = list(net.state_dict())
    prepared = prepare(net, EAGER, example_args=(X,))
    plan = plan_of(prepared)
    assert plan.qconfig == "portable, backend eager"
    assert len(plan.quantized) == len(plan.layers) == 12
    assert not plan.notes
    assert prepared is net
    assert [t.after for t in plan.tensors if t.after.endswith(("quant", "add"))] == [
        "quant",
        "features.1.add",
        "features.3.add",
    ]
    assert [key for key in prepared.state_dict() if not key.startswith("qat_state")] == keys
    assert int8_noise(prepared, X) > 30  # a wrong wire gives less than 10


def test_it_computes_what_torch_ao_would():
    """The stock eager flow on the same grids: both differ from float much more than from each other."""
    net = AnnotatedMobileNetV2()
    batch_norm_statistics(net, X)
    stock: Any = copy.deepcopy(net).train()
    prepared = prepare(copy.deepcopy(net), QConfig("x86_vnni", backend="eager"), example_args=(X,))
    calibrate(prepared, [X])
    activation = ao.FakeQuantize.with_args(
        observer=ao.MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8
    )
    weight = ao.FakeQuantize.with_args(
        observer=ao.MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0, quant_min=-127, quant_max=127,
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric,
    )  # fmt: skip
    with quiet_torch_ao():
        stock.fuse_model()
        stock.qconfig = ao.QConfig(activation, weight)
        ao.prepare_qat(stock, inplace=True)
    stock.eval()  # BatchNorm as it is; observers run in evaluation too
    with torch.no_grad():
        stock(X)
        stock.apply(ao.disable_observer)
        placed = _take_grids(stock, prepared)
        assert set(state_of(prepared).names) - placed == {"fq_mean"}  # a mean is float; what Linear reads of it is not
        unrounded: Any = state_of(prepared).fq_mean
        unrounded.forward = lambda x, *_: x
        ours, theirs, exact = prepared.eval()(X), stock(X), net.eval()(X)
    assert float(sqnr(theirs, ours)) > float(sqnr(exact, theirs)) + 20  # ties and the order of sums are left


def _take_grids(stock: nn.Module, prepared: nn.Module) -> set[str]:
    """Give torch.ao's fake quantizers the scales of lq's at the same place; says which of lq's have one."""
    scales, zero_points = state_of(prepared).scale_zero_point()
    residuals = {"features.1.skip_add": "fq_features_1_add", "features.3.skip_add": "fq_features_3_add"}
    placed = set()
    for path, module in stock.named_modules():
        if path.endswith(".activation_post_process") and isinstance(module, ao.FakeQuantize):
            holder = path.removesuffix(".activation_post_process")
            name = residuals.get(holder, "fq_" + holder.replace(".", "_"))
            if name in state_of(prepared).names:
                placed.add(name)
                slot = state_of(prepared).names.index(name)
                module.scale.fill_(scales[slot])
                module.zero_point.fill_(zero_points[slot])
            else:
                assert holder.endswith("skip_add"), name  # of blocks without a residual
    return placed


def test_every_operation_of_float_functional():
    net = Functionals()
    with pytest.warns(
        UserWarning, match=r"`add` in the target \(.*annotated.py:\d+, in forward\) joins .*\.FloatFunctional"
    ):
        prepared = prepare(net, EAGER, example_args=(COLOUR,))
    after = {t.after: t.absorbs for t in plan_of(prepared).tensors}
    assert (after["add"], after["add_1"]) == ("none", "relu")
    assert {"mul", "cat", "cat_1", "matmul"} <= after.keys()
    floats = plan_of(prepared).float_ops
    assert {"add_2", "mul_1", "add_3", "matmul"} <= set(floats)  # with a number, not annotated, without a kernel
    assert not {"add", "add_1", "mul", "cat", "cat_1"} & set(floats)
    assert plan_of(prepared).notes[0] in str(plan_of(prepared))
    assert reasons(prepared) == {"outside": "it does not lie between a QuantStub and a DeQuantStub"}
    assert int8_noise(prepared, COLOUR) > 30


def test_modules_with_qconfig_none_stay_float():
    net: Any = AnnotatedMobileNetV2()
    batch_norm_statistics(net, X)
    net.qconfig = "what it holds does not count"
    net.features[1].qconfig = None
    net.classifier[1].qconfig = None
    prepared = prepare(net, EAGER, example_args=(X,))
    left = reasons(prepared)
    block = "features.1"
    assert set(left) == {f"{block}.expand.0", f"{block}.depthwise.0", f"{block}.project.0", "classifier.1"}
    assert set(left.values()) == {"qconfig = None"}
    assert "features.1.add" in plan_of(prepared).float_ops
    assert "features.3.add" not in plan_of(prepared).float_ops
    assert int8_noise(prepared, X) > 30


def test_exclude_works_on_top():
    prepared = prepare(AnnotatedMobileNetV2(), QConfig(backend="eager", exclude=("classifier.*",)))
    assert reasons(prepared) == {"classifier.1": "exclude 'classifier.*'"}


@pytest.mark.parametrize("qat", [True, False])
def test_a_model_that_is_fused_already(qat):
    net = AnnotatedMobileNetV2()
    batch_norm_statistics(net, X)
    net.train(qat)
    with quiet_torch_ao():
        net.fuse_model(qat)
    prepared = prepare(net, EAGER, example_args=(X,))
    assert len(plan_of(prepared).quantized) == 12
    assert plan_of(prepared).layers[0].fused == (("BatchNorm2d", "ReLU") if qat else ("ReLU",))
    assert int8_noise(prepared, X) > 30


@pytest.mark.parametrize("qconfig", [EAGER, QConfig()])
def test_a_model_that_torch_ao_has_prepared_is_refused(qconfig):
    net: Any = AnnotatedMobileNetV2().train()
    with quiet_torch_ao():
        net.qconfig = ao.QConfig(ao.FakeQuantize, ao.FakeQuantize)
        ao.prepare_qat(net, inplace=True)
    with pytest.raises(ValueError, match=r"prepared or converted by torch.ao before: features.0.0 is a Conv2d. Give"):
        prepare(net, qconfig)


def test_a_model_without_stubs_is_refused():
    with pytest.raises(ValueError, match=r"Sequential calls no QuantStub .*backend='fx'"):
        prepare(nn.Sequential(nn.Linear(4, 2)), EAGER)
    wrapped = prepare(ao.QuantWrapper(nn.Sequential(nn.Linear(4, 2))), EAGER)
    assert [row.name for row in plan_of(wrapped).quantized] == ["module.0"]


def test_two_stubs_may_read_one_tensor():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left_stub, self.right_stub = ao.QuantStub(), ao.QuantStub()
            self.left, self.right = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.left(self.left_stub(x)), self.right(self.right_stub(x)), x[:, :2]])

    x = torch.rand(3, 4)
    prepared = prepare(Branches(), EAGER, example_args=(x,))
    assert state_of(prepared).names == ["fq_left_stub", "fq_left", "fq_right_stub", "fq_right"]
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    assert torch.equal(prepared.train()(x)[2], x[:, :2])  # what no stub has seen is not rounded


class Shared(nn.Module):
    """One stub for two inputs, whose ranges differ, perhaps within a checkpoint or beside a branch on values."""

    def __init__(self, checkpointed: bool = False, branches: bool = False) -> None:
        super().__init__()
        self.quant, self.dequant, self.join = ao.QuantStub(), ao.DeQuantStub(), FloatFunctional()
        self.left, self.right = nn.Linear(4, 2), nn.Linear(4, 2)
        self.checkpointed, self.branches = checkpointed, branches

    def part(self, x: Tensor) -> Tensor:
        y: Tensor = self.left(self.quant(x))
        return y

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        if self.branches and bool(x.sum() < -1e9):
            x = x * 2
        left = checkpoint(self.part, x, use_reentrant=False) if self.checkpointed else self.part(x)
        y: Tensor = self.dequant(self.join.add(left, self.right(self.quant(other))))
        return y


PAIR = torch.rand(3, 4), 5 * torch.rand(3, 4)


def trained(prepared: Any) -> Any:
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    for _ in range(2):
        prepared.zero_grad()
        prepared.train()(*PAIR).square().sum().backward()
    return prepared


def test_each_call_of_a_stub_has_a_range_of_its_own():
    prepared = trained(prepare(Shared(), EAGER, PAIR))
    ranges = dict(zip(state_of(prepared).names, state_of(prepared).max_val.tolist(), strict=True))
    assert ranges["fq_quant"] == pytest.approx(float(PAIR[0].max()))
    assert ranges["fq_quant_1"] == pytest.approx(float(PAIR[1].max()))
    with torch.no_grad():
        fake = prepared.eval()(*PAIR)
        assert torch.allclose(as_graph(prepared)(*PAIR), fake, atol=1e-6)
        for copied in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
            assert torch.equal(copied(*PAIR), fake)


@pytest.mark.parametrize("how", ["checkpointed", "branches"])
def test_what_no_graph_says_trains_the_same(how: str):
    net = Shared()
    other = Shared(**{how: True})
    other.load_state_dict(net.state_dict())
    expected = trained(prepare(net, EAGER, PAIR))
    got = prepare(other, EAGER)  # at its first call, or read off the code
    got(*PAIR)
    trained(got)
    assert state_of(got).names == state_of(expected).names
    grads = [[p.grad for p in prepared.parameters()] for prepared in (expected, got)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_annotations_say_nothing_to_the_default_backend():
    net = AnnotatedMobileNetV2()
    annotated, plain = prepare(net, EAGER), prepare(copy.deepcopy(net))
    ours, theirs = plan_of(plain), plan_of(annotated)
    assert [(t.grid, t.absorbs) for t in ours.tensors] == [(t.grid, t.absorbs) for t in theirs.tensors]
    assert [row.name for row in ours.quantized] == [row.name for row in theirs.quantized]
    calibrate(plain, [X])
    assert sum(isinstance(m, Int8Layer) for m in convert(plain).modules()) == 12
