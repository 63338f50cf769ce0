import copy

import pytest
import torch
from torch import nn

from lq.backends.prepare import prepare, state_of
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.conversion.convert import convert
from lq.core.calibration.clipping import SEARCHES
from lq.metrics import sqnr
from lq.ptq import calibrate


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()


def test_calibration_sees_limit_batches_and_leaves_batch_norm_alone():
    model = network()
    mean = model[1].running_mean.clone()
    prepared = prepare(model)
    seen = []
    batches = [torch.randn(4, 1, 8, 8) for _ in range(5)]
    assert calibrate(prepared, batches, lambda p, x: seen.append(p(x)), limit=3) == 3
    assert len(seen) == 3
    assert torch.equal(model[1].running_mean, mean)
    assert all(state_of(prepared).ready(slot) for slot in range(len(state_of(prepared).names)))


def test_calibrated_model_is_close_to_float_and_to_its_int8_self():
    model, x = network(), torch.randn(64, 1, 8, 8)
    prepared = prepare(copy.deepcopy(model))
    calibrate(prepared, [(x, torch.zeros(64))])
    with torch.no_grad():
        fake = prepared(x)
        # 7-bit weights and 8-bit activations: quantization noise about 1/64 and 1/256 of the range
        assert sqnr(model(x), fake) > 25
        assert sqnr(fake, convert(prepared)(x)) > 39


def test_an_empty_loader_is_refused():
    with pytest.raises(ValueError, match="no batch"):
        calibrate(prepare(network()), [])


@pytest.mark.parametrize("observer", ["histogram", "mse", "percentile", "entropy"])
def test_rare_outliers_cost_histogram_observers_less_than_minmax(observer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    calibration = torch.randn(4000, 16)
    calibration[0] *= 30  # one bad sample
    x = torch.randn(500, 16)
    found = {}
    for name in ("minmax", observer):
        activation = ActivationSpec(0, 63, observer=name, percentile=99.9)
        prepared = prepare(copy.deepcopy(model), QConfig(weight=WeightSpec(), activation=activation, keep="nothing"))
        calibrate(prepared, calibration.split(500))
        with torch.no_grad():
            found[name] = sqnr(model(x), prepared(x)).item()
            fake_and_int8 = sqnr(prepared(x), convert(prepared)(x)).item()
        assert fake_and_int8 > 39
    assert found[observer] > found["minmax"] + 4


def test_calibration_searches_once_however_many_batches(monkeypatch):
    calls = []
    search = SEARCHES["mse"]
    monkeypatch.setitem(SEARCHES, "mse", lambda *a: calls.append(1) or search(*a))
    prepared = prepare(network(), QConfig(activation=ActivationSpec(observer="mse")))
    calibrate(prepared, [torch.randn(4, 1, 8, 8) for _ in range(5)])
    assert not calls
    for _ in range(2):
        prepared(torch.randn(4, 1, 8, 8))
    assert len(calls) == 1


def test_nan_in_calibration_is_refused_and_named():
    x = torch.randn(4, 1, 8, 8)
    with pytest.raises(ValueError, match=r"NaN or infinity in \d of \d tensors, first in fq_\w+ \(1 of 2\) batches"):
        calibrate(prepare(network()), [x, x.clone().fill_(float("nan"))])


def test_observers_that_saw_nothing_are_refused():
    with pytest.raises(ValueError, match=r"no observer saw a tensor: call= has to call the prepared module"):
        calibrate(prepare(network()), [torch.randn(4, 1, 8, 8)], call=lambda prepared, batch: None)


def test_an_observer_that_saw_nothing_is_warned_of():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            return self.used(x), self.unused(x[:0])

    with pytest.warns(UserWarning, match=r"1 of 3 observers saw no tensor in calibration, e.g. fq_unused"):
        calibrate(prepare(Parts()), [torch.randn(4, 4)])


def test_the_phase_is_set_back_after_an_error():
    prepared = prepare(network())
    with pytest.raises(ValueError, match="no tensor"):
        calibrate(prepared, ["text"])
    assert not state_of(prepared).observer
    assert not prepared.training
