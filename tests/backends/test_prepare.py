from __future__ import annotations

import copy
import io
import json
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.backends.prepare import is_planned, is_prepared, plan_of, prepare, qconfig_of, set_phase, state_of
from lq.backends.saving import set_saving
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.conversion.convert import convert
from lq.core.checkpoint import as_bytes
from lq.instrument.attach import attach_again
from lq.ptq import calibrate


def make_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
        nn.Dropout(0.2), nn.Flatten(), nn.Linear(128, 3),
    )  # fmt: skip


X = (2, 3, 6, 6)


def test_parameters_and_buffers_are_shared_and_the_net_keeps_its_layers():
    net = make_net()
    theirs, parameters, layers = net.state_dict(keep_vars=True), list(net.parameters()), list(net)
    prepared = prepare(net, example_args=(torch.randn(X),))
    assert prepared is net
    ours = prepared.state_dict(keep_vars=True)
    assert [k for k in ours if not k.startswith("qat_state")] == list(theirs)
    assert all(ours[k] is theirs[k] for k in theirs)
    assert [id(p) for p in prepared.parameters()] == [id(p) for p in parameters]
    assert all(a is b for a, b in zip(prepared, layers, strict=True))
    assert isinstance(net[0], nn.Conv2d)


def test_preparing_twice_changes_nothing():
    prepared = prepare(make_net(), "x86_vnni")
    assert prepare(prepared) is prepare(prepared, "x86_vnni") is prepared
    assert is_prepared(prepared)
    assert not is_prepared(make_net())
    assert qconfig_of(prepared) == QConfig("x86_vnni")


def test_another_qconfig_plans_anew_unless_there_are_ranges():
    prepared, x = prepare(make_net()), torch.randn(X)
    assert prepare(prepared, "x86_vnni", (x,)) is prepared
    assert (qconfig_of(prepared), plan_of(prepared).qconfig) == (QConfig("x86_vnni"), "x86_vnni")
    calibrate(prepared, [x], show_progress=False)
    with pytest.raises(ValueError, match=r"another qconfig, .*x86_vnni.* has seen data.*copy\.deepcopy"):
        prepare(prepared, "portable")
    assert qconfig_of(prepared) == QConfig("x86_vnni")


def test_it_starts_as_the_float_model_to_the_bit():
    net, x = make_net(), torch.randn(X)
    prepared = prepare(copy.deepcopy(net))
    assert torch.equal(prepared.eval()(x), net.eval()(x))
    outputs = []
    for module in (copy.deepcopy(prepared), copy.deepcopy(net)):
        torch.manual_seed(0)
        y = module.train()(x)
        y.sum().backward()
        outputs.append((y, *(p.grad for p in module.parameters()), dict(module.named_buffers())["1.running_var"]))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_layers_on_the_module_itself_and_single_layers():
    prepared = prepare(nn.Sequential(nn.Linear(4, 2)))
    assert len(plan_of(prepared).quantized) == 1

    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"logits": self.fc(x), "n": 1}

    x = torch.randn(3, 4)
    assert prepare(Direct(), example_args=(x,))(x)["n"] == 1


@pytest.mark.parametrize(
    ("net", "qconfig", "message"),
    [
        (nn.Sequential(nn.ReLU()), "portable", r"Sequential has no quantizable layer \(Linear, Conv1d"),
        (nn.Sequential(nn.Linear(2, 2)), QConfig(exclude=("*",)), r"0 \(Linear\): exclude '\*'. Widen include"),
        (nn.Sequential(nn.LSTM(2, 2)), "portable", r"0 \(LSTM\): recurrent layers compute in float unless"),
        (nn.Sequential(nn.Linear(2, 2)), QConfig(exclude=("1",)), "pattern '1' matches no module"),
        (nn.Sequential(nn.Linear(2, 2)), "x86-vnni", "Unknown qconfig preset 'x86-vnni'. Did you mean 'x86_vnni'"),
        (
            nn.Sequential(nn.Linear(2, 2, device="meta")),
            "portable",
            r"0.weight of Sequential is on the meta device",
        ),
    ],
)
def test_where_nothing_can_be_quantized_it_says_so(net: nn.Module, qconfig: QConfig | str, message: str):
    with pytest.raises(ValueError, match=message):
        prepare(net, qconfig)
    assert not is_prepared(net)


def test_what_is_not_prepared_has_no_state():
    with pytest.raises(ValueError, match=r"Linear is not prepared for QAT; call lq\.prepare"):
        state_of(nn.Linear(1, 1))


def test_the_name_of_the_state_is_reserved():
    net = nn.Sequential(nn.Linear(2, 2))
    net.qat_state = nn.Identity()
    with pytest.raises(ValueError, match="already has an attribute 'qat_state'; rename it"):
        prepare(net)


def test_what_holds_a_prepared_part_is_not_prepared_as_well():
    net, x = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2)), torch.randn(4, 2)
    inner = prepare(net[0], example_args=(x,))
    with pytest.raises(ValueError, match=r"Sequential holds a part that was prepared before, '0', and would round"):
        prepare(net, example_args=(x,))
    assert is_prepared(inner)
    assert not is_prepared(net)
    set_phase(inner, fake_quant=True, observer=True, freeze_bn=False)
    net.train()(x)
    assert all(state_of(inner).observed())


def test_overrides_reach_weights_and_activations():
    four = LayerQConfig(WeightSpec(-7, 7), ActivationSpec(0, 15))
    prepared = prepare(make_net(), QConfig(overrides={"3": four, "type:Linear": LayerQConfig(WeightSpec(-127, 127))}))
    weights = {row.name: row.weight for row in plan_of(prepared).layers}
    assert weights["3"] == "int4 [-7, 7] per channel"
    assert weights["7"] == "int8 [-127, 127] per channel"
    grids = {t.name: t.grid for t in plan_of(prepared).tensors}
    assert grids["fq_3"] == "uint4 [0, 15] affine, moving_average_minmax"
    assert grids["fq_0"].startswith("uint8")


# ---- Python that no graph has --------------------------------------------------------------------------------------


class Gate(nn.Module):
    """Chooses between two layers by the values that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.positive, self.negative = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.positive(x)
        return self.negative(x)


def test_a_branch_that_depends_on_values_is_quantized_where_the_example_went():
    net, x = Gate(), torch.rand(6, 8)
    plan = plan_of(prepare(net, example_args=(x,)))
    assert [(row.name, row.weight is not None, row.reason) for row in plan.layers] == [
        ("positive", True, ""),
        ("negative", False, "it is not called; operations that read its weight run in float"),
    ]
    json.dumps(plan.to_dict())
    calibrate(net, [x])
    float_branch = F.linear(-x, net.negative.weight, net.negative.bias)
    assert torch.equal(net(-x), float_branch)
    assert not torch.equal(net(x), F.linear(x, net.positive.weight, net.positive.bias))


def test_a_branch_trains_and_copies_but_has_no_graph_and_the_line_is_named():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), Gate(), nn.Linear(8, 3))
    prepared = prepare(net, example_args=(torch.randn(6, 4),))
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    batches = list(3 * torch.randn(32, 2, 4))  # enough for both signs
    for x in batches:
        prepared(x).square().mean().backward()
    assert all(p.grad is not None for p in prepared.parameters())
    copies = copy.deepcopy(prepared.eval()), pickle.loads(pickle.dumps(prepared))
    with torch.no_grad():
        assert all(torch.equal(copied(x), prepared(x)) for copied in copies for x in batches)
    with pytest.raises(ValueError, match=rf"{re.escape(__file__)}:\d+, in forward: `if x\.sum\(\) > 0:`"):
        convert(prepared)


def test_without_an_example_what_the_code_does_not_say_is_planned_at_the_first_call():
    prepared, x = prepare(Gate()), torch.rand(6, 8)
    with pytest.raises(ValueError, match="Gate is planned at its first call, and it has not been called"):
        plan_of(prepared)
    prepared(x)
    assert [row.name for row in plan_of(prepared).quantized] == ["positive"]


# ---- life -------------------------------------------------------------------------------------------------------


def trained() -> nn.Module:
    prepared = prepare(make_net())
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        prepared(torch.randn(8, *X[1:])).square().mean().backward()
        optimizer.step()
    return prepared


def through_state_dict(prepared: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(prepared.state_dict(), file)
    other = prepare(make_net())
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    return other


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_state_dict])
@pytest.mark.parametrize("training", [True, False])
def test_copies_compute_the_same_and_live_on_their_own(copied: Any, training: bool):
    prepared, x = trained(), torch.randn(8, *X[1:])
    other = copied(prepared)
    before = copy.deepcopy(other.state_dict())
    outputs = []
    for module in (prepared, other):
        torch.manual_seed(0)
        y = module.train(training)(x)
        y.sum().backward()
        outputs.append(y)
    assert torch.equal(*outputs)
    assert torch.equal(state_of(prepared).max_val, state_of(other).max_val)
    set_phase(prepared, fake_quant=False, observer=False, freeze_bn=False)
    assert state_of(other).fake_quant
    if training:
        assert not torch.equal(before["qat_state.max_val"], other.state_dict()["qat_state.max_val"])
    assert plan_of(other) == plan_of(prepared)


def test_a_float_checkpoint_loads_strictly():
    net, prepared = make_net(), trained()
    ranges = state_of(prepared).max_val.clone()
    prepared.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(prepared.get_parameter("7.weight"), net[7].weight)
    assert torch.equal(state_of(prepared).max_val, ranges)


@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy])
def test_a_checkpoint_of_another_plan_is_refused_before_anything_is_loaded(copied: Any):
    """Same layers, same shapes, same number of fake quantizers: only their names tell the plans apart."""
    prepared = copied(trained())
    checkpoint = {key: value + 1 for key, value in prepared.state_dict().items()}
    names = state_of(prepared).names
    checkpoint["qat_state._extra_state"] = as_bytes([*names[:-1], "fq_other"], {})
    model = nn.Sequential(nn.Identity(), prepared)
    before = copy.deepcopy(model.state_dict())
    for target, prefix in ((prepared, ""), (model, "1.")):
        with pytest.raises(ValueError, match=rf"lacks the fake quantizers \['{names[-1]}'\], and .* \['fq_other'\]"):
            target.load_state_dict({prefix + key: value for key, value in checkpoint.items()})
        after = model.state_dict()
        assert not [key for key, value in before.items() if not torch.equal(value, after[key])]


def test_aliases_and_unused_layers_keep_their_keys_and_their_tie():
    net = make_net()
    net.alias, net.unused = net[0], nn.Linear(2, 2)
    prepared = prepare(_Forwarding(net), example_args=(torch.randn(X),))
    other = copy.deepcopy(prepared)
    assert prepared.state_dict().keys() == other.state_dict().keys()
    assert other.get_parameter("net.alias.weight") is other.get_parameter("net.0.weight")
    assert "net.unused.weight" in other.state_dict()


class _Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.fc(x) * scale


def test_arguments_that_the_example_left_out_can_be_given():
    x = torch.randn(3, 4)
    prepared = pickle.loads(pickle.dumps(prepare(_Optional(), example_args=(x,))))
    assert torch.equal(prepared(x, 2.0), 2 * prepared(x))


class _Forwarding(nn.Module):
    """Calls only the layers that are numbered."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        for i in range(8):
            x = self.net[i](x)
        return x


def test_sync_batch_norm_takes_the_place_of_batch_norm():
    prepared, x = trained().eval(), torch.randn(X)
    expected = prepared(x)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(prepared)).eval()
    assert isinstance(synced.get_submodule("1"), nn.SyncBatchNorm)
    with pytest.raises(RuntimeError, match=r"The BatchNorm after 0 was folded .*convert_sync_batchnorm"):
        synced(x)
    assert attach_again(synced) == {"1": "SyncBatchNorm", "4": "SyncBatchNorm"}
    assert torch.equal(synced(x), expected)
    state_of(synced).fake_quant = False
    assert not torch.equal(synced(x), expected)


def test_observers_see_training_batches_only():
    prepared = trained()
    before = copy.deepcopy(prepared.state_dict())
    prepared.eval()
    prepared(torch.randn(X) * 100)
    assert all(torch.equal(before[k], v) for k, v in prepared.state_dict().items() if isinstance(v, Tensor))
    prepared.train()
    with torch.inference_mode():
        prepared.eval()(torch.randn(X))
    prepared.train()(torch.randn(X)).sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_with_finite_gradients_and_float32_ranges(dtype: torch.dtype):
    prepared, x = trained(), torch.randn(8, *X[1:])
    with torch.autocast("cpu", dtype):
        y = prepared(x)
    y.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in prepared.parameters())
    assert state_of(prepared).min_val.dtype == torch.float32
    prepared.eval()
    with torch.autocast("cpu", dtype), torch.no_grad():
        half = prepared(x).float()
    full = prepared(x)
    assert (half - full).norm() < 0.1 * full.norm()  # 8-bit mantissas, and roundings that flip


def test_a_model_cast_to_bfloat16_still_trains():
    prepared = trained().to(torch.bfloat16)
    prepared(torch.randn(8, *X[1:], dtype=torch.bfloat16)).float().square().mean().backward()
    assert state_of(prepared).min_val.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in prepared.parameters())


@pytest.mark.filterwarnings("ignore:lq. overrides that change nothing.*'add'")  # the sum is the output
@pytest.mark.parametrize("pattern", ["x", "add", "type:ReLU", "relu"])
def test_overrides_name_inputs_and_operations_as_the_plan_does(pattern: str) -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.a(x))
            return self.b(y) + y

    four, eight = ActivationSpec(0, 15), ActivationSpec(0, 255)
    qconfig = QConfig(activation=four, overrides={pattern: LayerQConfig(activation=eight)})
    plan = plan_of(prepare(Skip(), qconfig, example_args=(torch.rand(2, 1, 8, 8),)))
    grids = {tensor.after: tensor.grid for tensor in plan.tensors}
    assert ("[0, 255]" in grids["x"]) == (pattern == "x")
    assert ("[0, 255]" in grids["a"]) == (pattern in ("type:ReLU", "relu")), "which its rounding absorbs"


def test_a_second_preparation_that_is_refused_leaves_the_first_one() -> None:
    net, x = make_net(), torch.randn(X)
    prepare(net, "portable", (x,))
    before = plan_of(net)
    with pytest.raises(ValueError, match="no_such_layer"):
        prepare(net, QConfig(exclude=("no_such_layer",)), (x,))
    assert str(plan_of(net)) == str(before)
    assert qconfig_of(net) == QConfig("portable")
    net.load_state_dict(net.state_dict())
    prepare(net, "x86_vnni", (x,))
    net.load_state_dict(net.state_dict())


@pytest.mark.parametrize("example", [(torch.randn(X),), None])
def test_a_second_preparation_that_is_refused_changes_no_phase_and_no_parameter(example: Any) -> None:
    learned = QConfig(weight=WeightSpec(learned_scale=True)) if example else QConfig()
    net = prepare(make_net(), learned, example)
    set_phase(net, fake_quant=True, observer=True, freeze_bn=True)
    set_saving(net, "bytes")
    state, parameters = state_of(net), list(map(id, net.parameters()))
    with pytest.raises(ValueError, match="no_such_layer"):
        prepare(net, QConfig(exclude=("no_such_layer",)), (torch.randn(X),))
    assert state_of(net) is state
    assert (state.fake_quant, state.observer, state.freeze_bn, state.saves_bytes) == (True, True, True, True)
    assert list(map(id, net.parameters())) == parameters
    net(torch.randn(X))
    assert all(state.observed())


def test_one_that_waits_for_its_first_call_still_waits_after_a_refused_preparation() -> None:
    class Branches(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    net = prepare(Branches(4, 2))
    set_phase(net, fake_quant=True, observer=True, freeze_bn=False)
    with pytest.raises(ValueError, match="no_such_layer"):
        prepare(net, QConfig(exclude=("no_such_layer",)), (torch.ones(1, 4),))
    assert not is_planned(net)
    net(torch.ones(1, 4))
    assert is_planned(net)
    assert state_of(net).fake_quant


def test_an_example_may_come_from_another_network() -> None:
    backbone, head, x = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    prepared = prepare(head, "portable", (backbone(x),))
    assert len(plan_of(prepared).layers) == 2


def test_a_head_that_is_planned_at_its_first_call_may_be_trained_with_its_backbone() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() < 1e9 else x  # which only a call can show

    backbone, head = nn.Linear(4, 4), prepare(Head())
    head(backbone(torch.randn(2, 4))).sum().backward()
    assert backbone.weight.grad is not None
    assert len(plan_of(head).layers) == 1
