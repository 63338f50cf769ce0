import torch
from torch import nn

from lq.backends.prepare import prepare
from lq.config.qconfig import QConfig
from lq.config.specs import WeightSpec
from lq.ptq.batch_norm import reestimate_batch_norm
from lq.ptq.layers import layers_of

COARSE = QConfig(weight=WeightSpec(-1, 1))


def test_batch_norm_is_measured_behind_the_rounded_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5), nn.Linear(4, 2))
    x = torch.randn(256, 8) + 3
    prepared = prepare(model, COARSE)
    assert reestimate_batch_norm(prepared, x.split(64)) == 1
    layer = layers_of(prepared)[0].module
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
