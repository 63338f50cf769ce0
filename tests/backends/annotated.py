"""What models that are annotated by hand may hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub


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
