"""Models with bad layers in known places."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec, WeightSpec

PER_TENSOR = QConfig(weight=WeightSpec(-127, 127, per_channel=False), activation=ActivationSpec(observer="histogram"))
BAD = "6"


def make_planted(bad: tuple[str, ...] = (BAD,)) -> nn.Sequential:
    """A small network; in the bad layers, weights of channel 0 are 300 times the others, at inputs that are always 0.

    In float nothing changes; with one scale per tensor nothing is left of the layer's other weights.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    before = {"3": 1, "6": 4, "8": 6}
    with torch.no_grad():
        for name in bad:
            feeding = model.get_submodule(str(before[name]))
            assert isinstance(feeding, (nn.BatchNorm2d, nn.Conv2d))
            assert feeding.bias is not None
            feeding.bias[0] = -100.0  # the ReLU behind it makes this channel 0
            weight = model.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            weight[0, 0] = 300 * weight.abs().mean()
        scores = model.eval()(_images())
        head = model[-1]
        assert isinstance(head, nn.Linear)
        head.bias.sub_(scores.mean(0))  # all classes occur
    return model


def make_batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Images (N, 1, 8, 8), labelled by the planted model itself, which so is right in every case."""
    with torch.no_grad():
        return [(x, make_planted()(x).argmax(1)) for x in _images().split(32)[:count]]


def _images() -> Tensor:
    """Patterns at three scales, so that the outputs differ by more than noise."""
    generator = torch.Generator().manual_seed(1)
    scales = (torch.randn(96, 1, size, size, generator=generator) for size in (1, 2, 8))
    return sum((nn.functional.interpolate(x, size=(8, 8)) for x in scales), torch.zeros(()))
