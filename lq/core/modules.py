"""The layers that train with quantized weights: linear, convolutions, transposed convolutions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lq.config.specs import WeightSpec
from lq.core.layer import QATLayer
from lq.core.state import QATState


class QATLinear(QATLayer, nn.Linear):  # type: ignore[misc]  # nn.Linear says Tensor of a bias that may be None
    """Linear layer with a quantized weight."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :meth:`QATLayer.compute`."""
        return F.linear(x, weight, bias)


class QATConv1d(QATLayer, nn.Conv1d):
    """1d convolution with a quantized weight."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :meth:`QATLayer.compute`."""
        y: Tensor = self._conv_forward(x, weight, bias)
        return y


class QATConv2d(QATLayer, nn.Conv2d):
    """2d convolution with a quantized weight."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :meth:`QATLayer.compute`."""
        y: Tensor = self._conv_forward(x, weight, bias)
        return y


class QATConv3d(QATLayer, nn.Conv3d):
    """3d convolution with a quantized weight."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :meth:`QATLayer.compute`."""
        y: Tensor = self._conv_forward(x, weight, bias)
        return y


class _QATConvTranspose(QATLayer):
    """Transposed convolution; one scale per weight, because the int8 kernels know no more."""

    channel_axis = 1

    @classmethod
    def from_float(cls, module: nn.Module, spec: WeightSpec, state: QATState) -> QATLayer:
        return super().from_float(module, replace(spec, per_channel=False), state)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :meth:`QATLayer.compute`."""
        transpose: Any = _TRANSPOSE[weight.dim()]
        layer: Any = self
        y: Tensor = transpose(
            x, weight, bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        )
        return y


_TRANSPOSE = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


class QATConvTranspose1d(_QATConvTranspose, nn.ConvTranspose1d):  # type: ignore[misc]  # no output_size
    """1d transposed convolution with a quantized weight."""


class QATConvTranspose2d(_QATConvTranspose, nn.ConvTranspose2d):  # type: ignore[misc]  # no output_size
    """2d transposed convolution with a quantized weight."""


class QATConvTranspose3d(_QATConvTranspose, nn.ConvTranspose3d):  # type: ignore[misc]  # no output_size
    """3d transposed convolution with a quantized weight."""


QAT_LAYERS: dict[type[nn.Module], type[QATLayer]] = {
    nn.Linear: QATLinear,
    nn.Conv1d: QATConv1d,
    nn.Conv2d: QATConv2d,
    nn.Conv3d: QATConv3d,
    nn.ConvTranspose1d: QATConvTranspose1d,
    nn.ConvTranspose2d: QATConvTranspose2d,
    nn.ConvTranspose3d: QATConvTranspose3d,
}


__all__: list[str] = [
    "QAT_LAYERS",
    "QATConv1d",
    "QATConv2d",
    "QATConv3d",
    "QATConvTranspose1d",
    "QATConvTranspose2d",
    "QATConvTranspose3d",
    "QATLayer",
    "QATLinear",
]
