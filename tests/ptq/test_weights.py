import copy

import pytest
import torch
from torch import nn

from lq.backends.prepare import prepare
from lq.config.qconfig import QConfig
from lq.config.specs import WeightSpec
from lq.ptq.layers import layers_of
from lq.ptq.weights import folded_weights


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_those_that_the_folded_layer_computes_with(per_channel):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    prepared = prepare(copy.deepcopy(model), QConfig(weight=WeightSpec(-7, 7, per_channel=per_channel)))
    (layer,) = layers_of(prepared)
    exact, rounded, bias = folded_weights(layer.module, layer.norm)
    x = torch.randn(3, 2, 5, 5)
    with torch.no_grad():
        assert torch.allclose(nn.functional.conv2d(x, exact, bias), model(x), atol=1e-5)
        prepared.qat_state.fake_quant = True  # without ranges only weights are rounded
        assert torch.allclose(nn.functional.conv2d(x, rounded, bias), prepared.eval()(x), atol=1e-5)
    scales = exact.abs().amax((1, 2, 3)) if per_channel else exact.abs().max().expand(4)
    assert ((exact - rounded).abs().amax((1, 2, 3)) <= scales / 14 + 1e-6).all()
