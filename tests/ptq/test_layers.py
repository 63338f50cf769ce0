import torch
from torch import nn

from lq.backends.prepare import prepare
from lq.ptq.layers import layers_of
from tests.ptq.test_switch import LAYERS, Residual


def test_layers_come_in_execution_order_with_their_batch_norm():
    found = layers_of(prepare(Residual()))
    assert sorted(layer.name for layer in found) == sorted(LAYERS)
    assert (found[0].name, found[-1].name) == ("stem", "head")
    assert {layer.name for layer in found if layer.norm is not None} == {"left.0"}


def test_a_layer_that_is_called_twice_is_one_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(torch.relu(self.fc(x)))

    assert [layer.name for layer in layers_of(prepare(Twice()))] == ["fc"]
