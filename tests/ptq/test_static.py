import copy

import lightning as L
import pytest
import torch
from torch import nn

from lq.backends.prepare import plan_of, prepare, state_of
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.conversion.int8 import Int8Layer
from lq.metrics import sqnr
from lq.ptq import StaticOptions, prepare_static, quantize_static
from tests.tiny import Tiny, make_data, make_net


@pytest.fixture
def data():
    return torch.stack([x for x, _ in make_data(64)])


def test_int8_is_close_to_float_and_float_is_left_as_it_was(data):
    model = make_net().train()
    before = copy.deepcopy(model.state_dict())
    int8 = quantize_static(model, data.split(16), options=StaticOptions(batch_norm=True, bias=True))
    assert any(isinstance(m, Int8Layer) for m in int8.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert "qat_state" not in dict(model.named_modules())


def test_eight_bits_are_close_to_float(data):
    model = make_net().eval()
    with torch.no_grad():
        # 7-bit weights: noise about 1/64 of the range
        assert sqnr(model(data), quantize_static(model, data.split(16))(data)) > 25


def test_histograms_are_the_default_and_a_given_activation_stays(data):
    model = make_net()
    assert {s.observer for s in state_of(prepare_static(model, [data])).specs} == {"histogram"}
    assert {s.observer for s in state_of(prepare_static(model, [data], "qnnpack")).specs} == {"histogram"}
    given = QConfig(activation=ActivationSpec(observer="mse"))
    assert {s.observer for s in state_of(prepare_static(model, [data], given)).specs} == {"mse"}


def test_the_target_of_a_lightning_module_is_replaced_in_a_copy(data):
    module = Tiny().eval()
    batches = [(data, torch.zeros(64)), [data, torch.zeros(64)]]
    quantized = quantize_static(module, batches)
    assert isinstance(quantized, Tiny)
    assert isinstance(module.model, nn.Sequential)
    with torch.no_grad():
        assert sqnr(module(data), quantized(data)) > 25
    assert plan_of(prepare_static(module, batches)).model == "Sequential"


def test_a_lightning_module_that_is_its_own_target_becomes_an_int8_model(data):
    class Whole(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(36, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.second(torch.relu(self.first(x.flatten(1))))

    module = Whole().eval()
    int8 = quantize_static(module, data.split(16))
    assert type(module) is Whole
    with torch.no_grad():
        assert sqnr(module(data), int8(data)) > 25


def test_a_mapping_of_keywords_is_a_batch():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 2), nn.Linear(3, 2)

        def forward(self, left, right):
            return self.a(left) + self.b(right)

    batch = {"left": torch.randn(8, 4), "right": torch.randn(8, 3), "labels": torch.zeros(8)}
    int8 = quantize_static(Two(), [batch])
    assert int8(left=batch["left"], right=batch["right"]).shape == (8, 2)


def test_mending_helps_coarse_weights(data):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(50):
            model.train()(data)
        qconfig = QConfig(weight=WeightSpec(-3, 3))
        found = {}
        for name, options in {
            "plain": StaticOptions(),
            "bias": StaticOptions(bias=True),
            "batch_norm": StaticOptions(batch_norm=True),
        }.items():
            prepared = prepare_static(model, data.split(32), qconfig, options=options)
            found[name] = sqnr(model.eval()(data), prepared(data)).item()
    assert found["bias"] > found["plain"] + 1
    assert found["batch_norm"] > found["plain"] + 1


def test_an_iterator_is_enough_for_several_passes(data):
    batches = iter(data.split(16))
    int8 = quantize_static(make_net(), batches, options=StaticOptions(batch_norm=True, bias=True))
    assert next(batches, None) is None
    assert len(int8(data)) == len(data)


def test_a_prepared_model_is_refused(data):
    with pytest.raises(ValueError, match=r"prepared already: lq.calibrate\(prepared, batches\)"):
        quantize_static(prepare(make_net()), [data])


@pytest.mark.parametrize("options", [StaticOptions(), StaticOptions(batch_norm=True), StaticOptions(bias=True)])
def test_an_empty_loader_is_refused(options):
    with pytest.raises(ValueError, match="got no batch"):
        quantize_static(make_net(), [], options=options)


def test_heights_and_widths_can_be_left_open():
    net, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), torch.rand(8, 1, 12, 12)
    int8 = quantize_static(net, x.split(4), dynamic_axes={"input": [2, 3]})
    other = torch.rand(2, 1, 9, 16)
    with torch.no_grad():
        assert sqnr(net(other), int8(other)) > 20  # calibrated on images of another size
    with pytest.raises(ValueError, match="dynamic_axes"):
        quantize_static(net, x.split(4))(other)


def test_a_lightning_module_without_forward_needs_a_call(data):
    class Plain(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make_net()

    with pytest.raises(ValueError, match=r"Plain has no forward\(\).*quantize_static\(module\.net, \.\.\.\), or call="):
        quantize_static(Plain(), [data])
    quantized = quantize_static(Plain(), [data], call=lambda module, batch: module.net(batch))
    assert any(isinstance(m, Int8Layer) for m in quantized.net.modules())
