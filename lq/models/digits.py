"""A small residual network for 8x8 digits."""

from __future__ import annotations

from torch import Tensor, nn

from lq.checks import check_integer
from lq.models.image_classifier import ImageClassifier
from lq.models.optimizer import OptimizerConfig


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_bn(inputs, outputs, 3, stride)
        self.relu1 = nn.ReLU()
        self.second = _conv_bn(outputs, outputs, 3)
        self.shortcut = nn.Identity() if stride == 1 else _conv_bn(inputs, outputs, 1, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.second(self.relu1(self.first(x))) + self.shortcut(x))  # type: ignore[no-any-return]


class DigitsNet(nn.Sequential):
    """A stem and three residual blocks, plain PyTorch with nothing about quantization in it.

    Args:
        width: channels of the stem; the last block has four times as many.

    Example:
        >>> import torch
        >>> DigitsNet()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, width: int = 16) -> None:
        check_integer("width", width, 16, least=1)
        super().__init__(
            _conv_bn(1, width, 3),
            nn.ReLU(),
            _Residual(width, width, stride=1),
            _Residual(width, 2 * width, stride=2),
            _Residual(2 * width, 4 * width, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, 10),
        )


class DigitsClassifier(ImageClassifier):
    """`DigitsNet` in the shared training loop.

    Args:
        width: channels of the stem.
        optimizer: optimizer and schedule; None for the default SGD.
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of its range.

    Example:
        >>> DigitsClassifier(width=8).model[-1]
        Linear(in_features=32, out_features=10, bias=True)
    """

    def __init__(self, width: int = 16, optimizer: OptimizerConfig | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__(DigitsNet(width), 10, optimizer, label_smoothing)
