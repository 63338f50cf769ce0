import copy

import pytest
import torch
from torch import nn

from lq.analysis.sqnr import sqnr_per_layer
from lq.backends.prepare import prepare
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.conversion.convert import convert
from lq.metrics import sqnr
from lq.ptq import prepare_static
from lq.ptq.layers import layers_of
from tests.analysis.planted import BAD, PER_TENSOR, make_batches, make_planted
from tests.ptq.test_switch import Residual


def by_name(rows, kind):
    return {row["name"]: row for row in rows if row["kind"] == kind}


def test_a_planted_weight_is_by_far_the_worst():
    batches = make_batches()
    rows = sqnr_per_layer(prepare_static(make_planted(), batches, PER_TENSOR), batches)
    weights = by_name(rows, "weight")
    assert weights[BAD]["worst_channel_db"] < 5
    assert weights[BAD]["sqnr_db"] > 25  # the one large weight is exact, and hides the others
    assert min(row["worst_channel_db"] for name, row in weights.items() if name != BAD) > 25
    activations = by_name(rows, "activation")
    # Alone every activation is fine; together with what comes before them those behind the bad layer are not.
    assert min(row["sqnr_db"] for row in activations.values()) > 30
    assert activations["3"]["accumulated_db"] > 30
    assert activations[BAD]["accumulated_db"] < 15


def test_figures_are_those_of_tensors_taken_by_hand():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(64, 4)
    prepared = prepare_static(model, [x])
    rows = sqnr_per_layer(prepared, x.split(16))
    with torch.no_grad():
        float_1 = model[:2](x)
        fake_0 = prepared.qat_state.fq_input_1(x)
        layer = layers_of(prepared)[0].module
        integers, scale, bias = layer.integer_weight(None)
        fake_1 = prepared.qat_state.get_submodule("fq_0")(fake_0 @ (integers * scale[:, None]).T + bias)
        expected = {
            ("input_1", "activation", "sqnr_db"): sqnr(x, fake_0),
            ("0", "weight", "sqnr_db"): sqnr(layer.weight, integers * scale[:, None]),
            ("0", "activation", "accumulated_db"): sqnr(float_1, fake_1),
            ("output", "output", "accumulated_db"): sqnr(model(x), prepared(x)),
        }
    for (name, kind, column), value in expected.items():
        assert by_name(rows, kind)[name][column] == pytest.approx(value.item(), abs=1e-3)
    assert by_name(rows, "output")["output"]["sqnr_db"] is None


@pytest.mark.parametrize("quant_max", [255, 15])
def test_int8_is_compared_where_it_has_the_tensor(quant_max):
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(16, 1, 8, 8)
    qconfig = QConfig(activation=ActivationSpec(quant_max=quant_max, observer="histogram"))
    prepared = prepare_static(model, [x], qconfig)
    rows = sqnr_per_layer(prepared, [x], int8=True)
    layers = by_name(rows, "activation")
    for name in ("stem", "left.0", "right", "head"):
        assert layers[name]["int8_db"] == pytest.approx(layers[name]["accumulated_db"], abs=1.5)
    with torch.no_grad():
        expected = sqnr(model(x), convert(prepared)(x)).item()
    assert by_name(rows, "output")["output"]["int8_db"] == pytest.approx(expected, abs=1e-3)
    assert all(row["int8_db"] is None for row in sqnr_per_layer(prepared, [x]))


def test_a_layer_that_is_called_twice_has_two_tensors():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(torch.tanh(self.fc(x)))

    x = torch.randn(16, 4)
    rows = sqnr_per_layer(prepare_static(Twice(), [x]), [x])
    assert [row["name"] for row in rows if row["kind"] == "weight"] == ["fc"]
    assert len([row for row in rows if row["name"].startswith("fc") and row["kind"] == "activation"]) == 2


def test_fewer_bits_are_noisier():
    batches, found = make_batches(1), []
    for quant_max in (127, 7):
        prepared = prepare_static(make_planted(()), batches, QConfig(weight=WeightSpec(-quant_max, quant_max)))
        found.append(by_name(sqnr_per_layer(prepared, batches), "weight")["3"]["sqnr_db"])
    # 20 log10(127 / 7) = 25 dB
    assert found[0] - found[1] == pytest.approx(25, abs=3)


def test_ranges_and_phase_are_needed_and_kept():
    model, x = nn.Sequential(nn.Linear(4, 2)), torch.randn(8, 4)
    with pytest.raises(ValueError, match=r"sqnr_per_layer\(\) needs ranges"):
        sqnr_per_layer(prepare(copy.deepcopy(model)), [x])
    prepared = prepare_static(model, [x]).train()
    prepared.qat_state.observer, prepared.qat_state.fake_quant = True, False
    sqnr_per_layer(prepared, [x])
    assert (prepared.training, prepared.qat_state.observer, prepared.qat_state.fake_quant) == (True, True, False)
    assert not prepared.qat_state._forward_hooks


def test_dead_channels_are_no_worst_channels():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)).eval(), torch.randn(16, 8)
    qconfig = QConfig(weight=WeightSpec(-127, 127, per_channel=False))
    with torch.no_grad():
        model[1].weight[2] = 0
    row = by_name(sqnr_per_layer(prepare_static(model, [x], qconfig), [x]), "weight")["0"]
    assert row["worst_channel_db"] > 30
