import pytest
import torch

from lq.models import DigitsClassifier


@pytest.mark.parametrize("width", [1, 16])
def test_shapes_and_gradients(width):
    module = DigitsClassifier(width=width)
    module(torch.rand(4, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in module.model.parameters())


@pytest.mark.parametrize("width", [0, -4, 1.5, True])
def test_bad_width(width):
    with pytest.raises((TypeError, ValueError), match=r"width=.* write e\.g\. width=16"):
        DigitsClassifier(width=width)
