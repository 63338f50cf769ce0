"""A model that is annotated by hand, for torch.ao's eager mode and lq's backend of that name."""

from __future__ import annotations

from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub, fuse_modules, fuse_modules_qat


class _ConvBNReLU(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=False),
        )


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _ConvBNReLU(inputs, hidden, 1)
        self.depthwise = _ConvBNReLU(hidden, hidden, 3, stride, hidden)
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.is_residual = stride == 1 and inputs == outputs
        self.skip_add = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return self.skip_add.add(x, y) if self.is_residual else y


class AnnotatedMobileNetV2(nn.Module):
    """MobileNetV2 for small grey images, with stubs at both ends and an addition per residual block that says so.

    Args:
        width: channels of the stem; the last layer has four times as many.
        classes: number of classes.

    Source:
        the model of PyTorch's tutorial on static quantization in eager mode,
        https://docs.pytorch.org/tutorials/advanced/static_quantization_tutorial.html, in a few layers.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import plan_of, prepare
        >>> from lq.config.qconfig import QConfig
        >>> prepared = prepare(AnnotatedMobileNetV2(), QConfig(backend="eager"))
        >>> print(plan_of(prepared).summary().partition(": ")[2])
        12 of 12 layers quantized, 16 fake quantizers, other operations in float: 1
    """

    def __init__(self, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.features = nn.Sequential(
            _ConvBNReLU(1, width, 3),
            _InvertedResidual(width, width, 1, 2),
            _InvertedResidual(width, 2 * width, 2, 2),
            _InvertedResidual(2 * width, 2 * width, 1, 2),
            _ConvBNReLU(2 * width, 4 * width, 1),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(4 * width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (N, classes) of images of shape (N, 1, H, W)."""
        x = self.features(self.quant(x)).mean([2, 3])
        logits: Tensor = self.dequant(self.classifier(x))
        return logits

    def fuse_model(self, qat: bool = True) -> None:
        """Fuse layers as torch.ao's eager mode wants it, in training or in evaluation mode; lq does not need that."""
        fuse = fuse_modules_qat if qat else fuse_modules
        for module in list(self.modules()):
            if type(module) is _ConvBNReLU:
                fuse(module, ["0", "1", "2"], inplace=True)  # type: ignore[no-untyped-call]
            elif isinstance(module, _InvertedResidual):
                fuse(module.project, ["0", "1"], inplace=True)  # type: ignore[no-untyped-call]
