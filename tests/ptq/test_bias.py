import pytest
import torch
from torch import nn

from lq.backends.prepare import prepare, set_phase
from lq.config.qconfig import QConfig
from lq.config.specs import WeightSpec
from lq.conversion.convert import convert
from lq.metrics import sqnr
from lq.ptq.bias import correct_bias
from lq.ptq.calibrate import calibrate

COARSE = QConfig(weight=WeightSpec(-1, 1))


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
    assert prepared is model
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


@pytest.mark.parametrize("size", [(3, 9, 9), (3, 10, 10), (2, 3, 9, 9)])
def test_images_may_come_without_a_batch(size):
    """With 10 rows, a convolution of 8 channels gives 8 rows as well."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), torch.randn(size)
    wanted = model(x)
    prepared = prepare(model, QConfig(keep="nothing", weight=WeightSpec(-3, 3)), (x,))
    before = (prepared(x) - wanted).mean((-1, -2)).abs().max()
    corrected = correct_bias(prepared, [x])
    assert sorted(corrected) == ["0", "2"]
    calibrate(prepared, [x], show_progress=False)
    off = (prepared(x) - wanted).mean((-1, -2))
    assert (off.mean(0) if len(size) == 4 else off).abs().max() < 0.01 + 0 * before
