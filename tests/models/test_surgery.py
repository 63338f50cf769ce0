import pytest
import torch
from torch import nn

from lq.models.surgery import adapt_head, adapt_input, relax_strides

torchvision = pytest.importorskip("torchvision")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0", "squeezenet1_1"])
def test_first_convolution_takes_other_channels(name):
    net = adapt_input(torchvision.models.get_model(name, weights=None), 2).eval()
    assert net(torch.zeros(1, 2, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11", "densenet121"])
def test_last_linear_gets_other_classes(name):
    net = adapt_head(torchvision.models.get_model(name, weights=None), 7).eval()
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_what_already_fits_is_kept():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 3))
    conv, linear = net[0], net[2]
    adapt_head(adapt_input(net, 1), 3)
    assert net[0] is conv
    assert net[2] is linear


@pytest.mark.parametrize(("count", "side"), [(0, 1), (1, 2), (2, 4)])
def test_relaxing_keeps_resolution(count, side):
    net = relax_strides(torchvision.models.mobilenet_v2(width_mult=0.25), count).eval()
    assert net.features(torch.zeros(1, 3, 28, 28)).shape[2:] == (side, side)


@pytest.mark.parametrize("count", [-1, 3])
def test_relaxing_too_many_is_refused(count):
    net = nn.Sequential(nn.Conv2d(1, 1, 3, stride=2), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3))
    with pytest.raises(ValueError, match=f"between 0 and 2, .* got {count}"):
        relax_strides(net, count)


def test_models_without_the_layer_are_named():
    with pytest.raises(ValueError, match="Sequential has no Conv2d layer"):
        adapt_input(nn.Sequential(nn.ReLU()), 1)
    with pytest.raises(ValueError, match="Sequential has no Linear layer"):
        adapt_head(nn.Sequential(nn.ReLU()), 2)


def test_the_first_convolution_keeps_how_it_pads():
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    assert adapt_input(nn.Sequential(conv), in_channels=1)[0].padding_mode == "reflect"
