import math

import pytest
import torch
from torch import nn

from lq.analysis.ranges import activation_scales, range_statistics
from lq.backends.prepare import prepare
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.core.weight import weight_scale
from lq.ptq import calibrate, prepare_static
from lq.ptq.layers import layers_of


def rows_of(prepared, batches):
    return {(row["name"], row["kind"]): row for row in range_statistics(prepared, batches)}


def test_saturation_is_the_share_beyond_the_range():
    model = nn.Sequential(nn.Linear(4, 2))
    prepared = prepare(model, QConfig(activation=ActivationSpec(observer="minmax")))
    calibrate(prepared, [torch.tensor([[-1.0, 0.0, 0.5, 1.0]])])
    row = rows_of(prepared, [torch.tensor([[-2.0, 0.0, 0.5, 1.5]])])["input_1", "activation"]
    assert row["saturated"] == 0.5
    assert row["low"] == pytest.approx(-1.0, abs=0.01)
    assert row["high"] == pytest.approx(1.0, abs=0.01)
    assert (row["used_levels"], row["levels"], row["dead"]) == (4, 256, 0)


def test_what_a_relu_cuts_off_is_not_saturated():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU6(), nn.Linear(8, 2))
    x = 30 * torch.randn(64, 4)
    row = rows_of(prepare_static(model, [x], QConfig(activation=ActivationSpec(observer="minmax"))), [x])
    assert row["0", "activation"]["saturated"] == 0
    assert row["0", "activation"]["high"] == pytest.approx(6.0)
    assert row["0", "activation"]["low"] == 0


def test_symmetric_grids_waste_half_their_levels_behind_a_relu():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(500, 8)
    found = rows_of(prepare_static(model, [x], "tensorrt"), [x])
    assert found["0", "activation"]["used_levels"] <= 128
    assert found["input_1", "activation"]["used_levels"] > 150


def test_dead_channels_and_dead_tensors():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[0].weight[2:4] = 0
        model[0].bias.fill_(-100)
    found = rows_of(prepare_static(model, [torch.randn(8, 4)]), [torch.randn(8, 4)])
    assert found["0", "weight"]["dead"] == 2
    assert found["0", "activation"]["dead"] == 1
    assert found["2", "weight"]["dead"] == 0


def test_weights_use_their_levels_and_learned_scales_leave_some_beyond():
    model, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(8, 64)
    row = rows_of(prepare_static(model, [x], QConfig(weight=WeightSpec(-7, 7))), [x])["0", "weight"]
    assert (row["levels"], row["used_levels"], row["saturated"]) == (15, 15, 0.0)
    prepared = prepare_static(model, [x], QConfig(weight=WeightSpec(-7, 7, learned_scale=True)))
    with torch.no_grad():
        prepared.qat_state.wq_0.learned_scale.log_factor.fill_(math.log(0.5))
    assert 0.2 < rows_of(prepared, [x])["0", "weight"]["saturated"] < 0.8


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_weights_that_a_scale_of_least_squares_clips_are_counted(learned: bool, per_channel: bool, batch_norm: bool):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 16), *([nn.BatchNorm1d(16)] if batch_norm else []))
    x = torch.randn(32, 256)
    with torch.no_grad():
        net[0].weight.normal_()  # on 7 levels the tails of a normal distribution are clipped
        if batch_norm:
            net[1].weight.uniform_(0.5, 2)
    spec = WeightSpec(-3, 3, per_channel=per_channel, observer="mse", learned_scale=learned)
    prepared = prepare_static(net, [x], QConfig(weight=spec))
    (layer,) = layers_of(prepared)
    weight = layer.module.weight.detach()
    if batch_norm and not per_channel:
        weight = weight * (net[1].weight * torch.rsqrt(net[1].running_var + net[1].eps)).detach()[:, None]
    beyond = (weight / weight_scale(weight, spec)).round().abs() > 3
    assert 0.001 < beyond.float().mean() < 0.3
    assert rows_of(prepared, [x])["0", "weight"]["saturated"] == pytest.approx(float(beyond.float().mean()))


def test_what_is_no_number_lies_beyond_every_grid():
    prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [torch.randn(8, 4)])
    row = rows_of(prepared, [torch.tensor([[float("nan"), float("inf"), 0.0, 0.1]])])["input_1", "activation"]
    assert row["saturated"] == 0.5


def test_no_batch_is_refused():
    prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [torch.randn(8, 4)])
    with pytest.raises(ValueError, match=r"range_statistics\(\) got no batch"):
        range_statistics(prepared, [])


def test_scales_are_those_of_the_grids_learned_ones_too():
    activation = ActivationSpec(observer="minmax", learned_scale=True)
    prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [torch.randn(8, 4)], QConfig(activation=activation))
    before = activation_scales(prepared)
    assert before == {"input_1": pytest.approx(before["input_1"]), "0": pytest.approx(before["0"])}
    with torch.no_grad():
        prepared.qat_state.fq_input_1.learned_scale.log_factor.fill_(math.log(2))
    assert activation_scales(prepared) == {**before, "input_1": pytest.approx(2 * before["input_1"])}


def test_tensors_without_a_range_have_no_scale():
    assert activation_scales(prepare(nn.Sequential(nn.Linear(4, 2)))) == {}
