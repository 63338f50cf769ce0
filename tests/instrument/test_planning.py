"""Names of calls and of values, and which call in training is which in evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.backends.prepare import is_planned, plan_of, prepare, prepare_again, qconfig_of, set_phase, state_of
from lq.config.qconfig import QConfig
from lq.config.specs import WeightSpec
from lq.conversion.graph import as_graph
from lq.instrument.attach import instrument_of
from lq.ptq import calibrate
from lq.ptq.layers import layers_of
from tests.instrument.nets import Net, images, ready


def test_values_are_named_by_the_layer_or_by_the_operation_in_its_module() -> None:
    plan = plan_of(prepare(Net(), example_args=(images(),)))
    assert [(t.name, t.after, t.absorbs) for t in plan.tensors] == [
        ("fq_x", "x", "none"),
        ("fq_stem", "stem", "relu"),
        ("fq_blocks_0_conv1", "blocks.0.conv1", "relu"),
        ("fq_blocks_0_conv2", "blocks.0.conv2", "none"),
        ("fq_blocks_0_add", "blocks.0.add", "relu"),
        ("fq_blocks_1_conv1", "blocks.1.conv1", "relu"),
        ("fq_blocks_1_conv2", "blocks.1.conv2", "none"),
        ("fq_blocks_1_add", "blocks.1.add", "relu"),
        ("fq_mean", "mean", "none"),
        ("fq_head", "head", "none"),
    ]
    assert plan.float_ops == ("mean",)


def test_work_is_counted_and_its_line_is_known() -> None:
    plan = plan_of(prepare(Net(), example_args=(images(count=1),)))
    work = {row.name: row.work for row in plan.layers}
    assert (work["stem"], work["blocks.0.conv1"], work["head"]) == (2 * 9 * 4 * 36, 4 * 9 * 4 * 36, 12)
    assert all("nets.py:" in row.line for row in plan.layers)
    assert plan.share == 1.0


def test_slots_of_one_name_are_numbered() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.fc(x)))

    names = [t.name for t in plan_of(prepare(Twice(), example_args=(torch.randn(2, 4),))).tensors]
    assert names == ["fq_x", "fq_fc", "fq_fc_1"]


class Training(nn.Module):
    """Calls more in training, in front of what it always calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.w = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.training:
            x = x + nn.functional.linear(self.aux(x), self.w)
        y = nn.functional.linear(x, self.w.T)
        return self.b(y + x)


@pytest.mark.parametrize("read", [False, True], ids=["recorded", "read off the code"])
def test_calls_that_only_training_makes_do_not_shift_the_others(read: bool) -> None:
    net = Training()
    x = torch.randn(16, 4)
    prepared = prepare(net, example_args=None if read else (x,))
    assert is_planned(prepared)
    quantized = [row.name for row in plan_of(prepared).quantized]
    assert sorted(quantized) == ["a", "b", "linear"]
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    prepared.train()(x)
    with torch.no_grad():
        y = net.a(x)
        y = y + nn.functional.linear(net.aux(y), net.w)
        y = nn.functional.linear(y, net.w.T)
    state = state_of(prepared)
    slot = state.names.index("fq_linear")
    assert state.max_val[slot].item() == pytest.approx(y.max().item(), rel=0.05)


def test_a_layer_of_training_only_is_a_row_with_its_reason() -> None:
    rows = {row.name: row for row in plan_of(prepare(Training(), example_args=(torch.randn(8, 4),))).layers}
    assert rows["aux"].weight is None
    assert rows["aux"].reason == "it is not called; operations that read its weight run in float"


class Alike(nn.Module):
    """Paths of layers that differ by a dot alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_0 = nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a_0(torch.relu(self.a(x)))


def test_layers_of_like_names_have_quantizers_of_their_own() -> None:
    net = Alike()
    with torch.no_grad():
        net.a_0.weight.mul_(100)
    prepared, x = ready(net, torch.randn(8, 4)).eval(), torch.randn(8, 4)
    layers = {layer.name: layer.module for layer in layers_of(prepared)}
    assert layers.keys() == {"a.0", "a_0"}
    assert layers["a.0"].quantizer is not layers["a_0"].quantizer
    assert prepared(x).abs().max() > 5  # with the grid of the other layer all weights would be clipped
    learned = prepare(Alike(), QConfig(weight=WeightSpec(learned_scale=True)), example_args=(x,))
    scales = [name for name, _ in learned.named_parameters() if name.startswith("qat_state.wq_")]
    assert len(scales) == 2


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.conv(self.conv(x)[:, [0, 1, 2, 3, 4, 5, 0, 1]]))
        return F.conv_transpose2d(code, self.conv.weight, padding=1)


@pytest.mark.parametrize("learned_scale", [False, True])
def test_a_weight_has_a_quantizer_for_each_of_its_grids(learned_scale: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8, 6, 6)
    qconfig = QConfig("portable", weight=WeightSpec(-63, 63, learned_scale=learned_scale))
    prepared = prepare(TiedAutoencoder(), qconfig, example_args=(x,))
    sites = plan_of(prepared).sites
    assert sites is not None
    assert [at.quantizer for at in sites.layers] == ["wq_conv", "wq_conv", "wq_conv_1"]
    calibrate(prepared, [x])
    prepared.eval()
    torch.testing.assert_close(as_graph(prepared)(x), prepared(x), rtol=0, atol=1e-5)


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(input=x, weight=self.fc.weight, bias=self.fc.bias)


@pytest.mark.parametrize("learned_scale", [False, True])
def test_a_weight_that_is_given_by_keyword_is_known(learned_scale: bool) -> None:
    net, x = ByKeyword(), torch.randn(8, 4)
    prepared = prepare(net, QConfig(weight=WeightSpec(learned_scale=learned_scale)), example_args=(x,))
    sites = plan_of(prepared).sites
    assert sites is not None
    assert [layer.weight for layer in sites.layers] == ["fc.weight"]
    assert ("qat_state.wq_fc.learned_scale.log_factor" in dict(prepared.named_parameters())) is learned_scale
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    prepared.train()(x).sum().backward()
    assert net.fc.weight.grad is not None


def test_an_addition_that_is_missing_the_second_time_is_noticed() -> None:
    calls = []

    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.training)
            y = self.fc(x)
            return self.head(y + x if calls.count(False) == 1 else torch.sub(y, -x))

    with pytest.raises(ValueError, match=r"calls other functions the second time: .*add"):
        prepare(Fickle(), example_args=(torch.randn(2, 4),))


class NormFirst(nn.Module):
    """Two additions behind a BatchNorm that no layer takes in, and which adds one to its counter in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b, self.c = nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.norm(x))
        y = self.a(y) + y
        z = self.c(self.b(y) + self.a(y))
        return z + z.flip(1)


@pytest.mark.parametrize("how", ["read", "one sample", "recorded", "from a checkpoint"])
def test_the_counter_of_a_batch_norm_does_not_shift_additions(how: str) -> None:
    x, net = torch.randn(8, 4), NormFirst()
    prepared = prepare(net, None, None if how == "read" else (x[:1] if how == "one sample" else x,))
    if how == "from a checkpoint":
        prepared = prepare_again(NormFirst(), qconfig_of(prepared), plan_of(prepared).to_dict())
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    seen: list[Tensor] = []
    state_of(prepared).get_submodule("fq_add").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    prepared.train()(x)
    assert [tuple(t.shape) for t in seen] == [(8, 4)]
    instrument = instrument_of(prepared)
    assert instrument is not None
    assert not instrument.unplanned, "the last addition is in the plan, without a site"


def test_an_activation_behind_a_dropout_is_rounded_in_training_too() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2)), torch.randn(16, 4)
    prepared = ready(net, x)
    assert [tensor.absorbs for tensor in plan_of(prepared).tensors] == ["none", "relu", "none"]
    state = state_of(prepared)
    assert all(state.observed())
    seen: list[Tensor] = []
    prepared[3].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    prepared(x)
    scale = state.get_submodule("fq_0").scale
    assert torch.allclose(seen[0], (seen[0] / scale).round() * scale)
    instrument = instrument_of(prepared)
    assert instrument is not None
    assert not instrument.unplanned
