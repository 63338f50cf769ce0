import pytest
import torch
from torch import nn

from lq.backends.convert import convert
from lq.backends.prepare import prepare, set_phase
from lq.metrics import sqnr
from lq.ptq.calibrate import calibrate
from lq.ptq.correction import correct_bias, reestimate_batch_norm
from lq.qconfig import QConfig, WeightSpec

COARSE = QConfig(weight=WeightSpec(-1, 1))


def mean_error(model, prepared, x):
    with torch.no_grad():
        return (prepared(x) - model(x)).mean(0).abs().max().item()


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(8, 4)),
        nn.Sequential(nn.Linear(8, 4, bias=False)),
        nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)),
        nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4, affine=False)),
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten()),
    ],
    ids=["bias", "no bias", "batch norm", "plain batch norm", "convolution"],
)
def test_the_mean_error_of_coarse_weights_goes(model):
    """One layer, activations in float: what is left is rounding in float32."""
    torch.manual_seed(0)
    x = torch.randn(64, 2, 5, 5) + 2 if isinstance(model[0], nn.Conv2d) else torch.randn(64, 8) + 2
    for norm in (m for m in model if isinstance(m, nn.BatchNorm1d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    expected = model.eval()(x).detach()
    prepared = prepare(model, COARSE).eval()
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)  # no ranges: only weights are rounded
    dims = [0] if not isinstance(model[0], nn.Conv2d) else [0, 2, 3]

    def error():
        difference = (prepared(x) - expected).detach()
        return difference.reshape(64, 4, 5, 5).mean(dims) if len(dims) > 1 else difference.mean(0)

    before = error()
    corrections = correct_bias(prepared, x.split(16))
    assert error().abs().max() < 1e-5
    assert corrections["0"] == pytest.approx(before.abs().max().item(), rel=1e-4)


def test_a_corrected_model_converts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 4)).eval()
    x = torch.rand(64, 8)
    prepared = prepare(model, COARSE)
    correct_bias(prepared, [x])
    calibrate(prepared, [x])
    with torch.no_grad():
        assert sqnr(prepared(x), convert(prepared)(x)) > 39


def test_batch_norm_is_measured_behind_the_rounded_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5), nn.Linear(4, 2))
    x = torch.randn(256, 8) + 3
    prepared = prepare(model, COARSE)
    assert reestimate_batch_norm(prepared, x.split(64)) == 1
    layer = prepared.get_submodule("0")
    integers, scale, bias = layer.integer_weight(None)
    y = x @ (integers * scale[:, None]).T + bias
    batches = torch.stack(y.split(64))
    assert torch.allclose(model[1].running_mean, y.mean(0), atol=1e-4)
    assert torch.allclose(model[1].running_var, batches.var(1).mean(0), rtol=1e-4)
    assert model[1].momentum == 0.3
    assert not any(m.training for m in prepared.modules())


def test_batch_norm_that_does_not_run_keeps_what_it_knew():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].running_mean.fill_(7.0)
    reestimate_batch_norm(prepare(model), [torch.randn(8, 4)], call=lambda prepared, batch: None)
    assert model[1].running_mean.tolist() == [7.0] * 4


def test_a_model_without_batch_norm_has_none_to_measure():
    assert reestimate_batch_norm(prepare(nn.Sequential(nn.Linear(4, 2))), [torch.randn(8, 4)]) == 0
