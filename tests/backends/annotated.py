"""A MobileNetV2 for small images, annotated by hand for torch.ao's eager mode, with ReLU in the place of ReLU6."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub, fuse_modules, fuse_modules_qat


class ConvBNReLU(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=False),
        )


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvBNReLU(inputs, hidden, 1)
        self.depthwise = ConvBNReLU(hidden, hidden, 3, stride, hidden)
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.is_residual = stride == 1 and inputs == outputs
        self.skip_add = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return self.skip_add.add(x, y) if self.is_residual else y


class AnnotatedMobileNetV2(nn.Module):
    """Stubs at both ends, an addition per residual block, and a list of what torch.ao is to fuse."""

    def __init__(self, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.features = nn.Sequential(
            ConvBNReLU(1, width, 3),
            InvertedResidual(width, width, 1, 2),
            InvertedResidual(width, 2 * width, 2, 2),
            InvertedResidual(2 * width, 2 * width, 1, 2),
            ConvBNReLU(2 * width, 4 * width, 1),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(4 * width, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.quant(x)).mean([2, 3])
        logits: Tensor = self.dequant(self.classifier(x))
        return logits

    def fuse_model(self, qat: bool = True) -> None:
        fuse = fuse_modules_qat if qat else fuse_modules
        for module in list(self.modules()):
            if type(module) is ConvBNReLU:
                fuse(module, ["0", "1", "2"], inplace=True)
            elif isinstance(module, InvertedResidual):
                fuse(module.project, ["0", "1"], inplace=True)


class Functionals(nn.Module):
    """Every operation of FloatFunctional, and one addition that nobody annotated."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(4, 3)
        self.outside = nn.Linear(3, 3)
        self.sum: Any = FloatFunctional()
        self.sum_relu: Any = FloatFunctional()
        self.product: Any = FloatFunctional()
        self.left: Any = FloatFunctional()
        self.right: Any = FloatFunctional()
        self.shifted: Any = FloatFunctional()
        self.scaled: Any = FloatFunctional()
        self.matrix_product: Any = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(x)
        a, b = self.first(x), self.second(x)
        c = self.product.mul(self.sum.add(a, b), self.sum_relu.add_relu(a, b))
        c = self.scaled.mul_scalar(self.shifted.add_scalar(c, 0.5), 2.0)
        c = self.left.cat([c, a], dim=2) + self.right.cat([b, b], dim=2)
        c = self.matrix_product.matmul(c, c.transpose(2, 3)).mean([2, 3])
        y: Tensor = self.outside(self.dequant(self.last(c)))
        return y


def batch_norm_statistics(model: nn.Module, x: Tensor) -> None:
    """Statistics of a few batches, so that BatchNorm does something in evaluation."""
    with torch.no_grad():
        for _ in range(20):
            model.train()(x)
