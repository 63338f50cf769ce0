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
    """Linear layer with a quantized weight.

    Example:
        >>> linear = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(linear.weight, 0.7)
        >>> layer = QATLinear.from_float(linear, WeightSpec(-7, 7), QATState([], [], []))
        >>> layer.integer_weight(None)
        (tensor([[7, 7]], dtype=torch.int8), tensor([0.1000]), None)
    """

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :meth:`QATLayer.compute`."""
        return F.linear(x, weight, bias)


class QATConv1d(QATLayer, nn.Conv1d):
    """1d convolution with a quantized weight.

    Example:
        >>> layer = QATConv1d.from_float(nn.Conv1d(2, 8, 3), WeightSpec(), QATState([], [], []))
        >>> layer.weight_scale.shape, list(layer.state_dict())
        (torch.Size([8, 1, 1]), ['weight', 'bias'])
    """

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :meth:`QATLayer.compute`."""
        y: Tensor = self._conv_forward(x, weight, bias)
        return y


class QATConv2d(QATLayer, nn.Conv2d):
    """2d convolution with a quantized weight.

    Example:
        >>> conv, norm = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0)
        >>> _, _ = nn.init.constant_(conv.weight, 0.7), nn.init.constant_(norm.weight, -2.0)
        >>> layer = QATConv2d.from_float(conv, WeightSpec(-7, 7), QATState([], [], []))
        >>> [round(part.item(), 6) for part in layer.integer_weight(norm)]
        [-7, 0.2, 0.0]
    """

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :meth:`QATLayer.compute`."""
        y: Tensor = self._conv_forward(x, weight, bias)
        return y


class QATConv3d(QATLayer, nn.Conv3d):
    """3d convolution with a quantized weight.

    Example:
        >>> spec, state = WeightSpec(learned_scale=True), QATState([], [], [])
        >>> layer = QATConv3d.from_float(nn.Conv3d(2, 8, 3), spec, state)
        >>> list(layer.state_dict())
        ['weight', 'bias', 'learned_scale.log_factor']
    """

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
    """1d transposed convolution with a quantized weight.

    Example:
        >>> layer = QATConvTranspose1d.from_float(nn.ConvTranspose1d(2, 8, 3), WeightSpec(), QATState([], [], []))
        >>> str(layer.weight_spec)
        'int7 [-63, 63] per tensor'
    """


class QATConvTranspose2d(_QATConvTranspose, nn.ConvTranspose2d):  # type: ignore[misc]  # no output_size
    """2d transposed convolution with a quantized weight.

    Example:
        >>> layer = QATConvTranspose2d.from_float(nn.ConvTranspose2d(2, 8, 3), WeightSpec(), QATState([], [], []))
        >>> layer.weight_scale.shape
        torch.Size([])
    """


class QATConvTranspose3d(_QATConvTranspose, nn.ConvTranspose3d):  # type: ignore[misc]  # no output_size
    """3d transposed convolution with a quantized weight.

    Example:
        >>> import torch
        >>> layer = QATConvTranspose3d.from_float(nn.ConvTranspose3d(2, 8, 3), WeightSpec(), QATState([], [], []))
        >>> layer.along_channels(torch.ones(8)).shape, layer.weight.shape
        (torch.Size([1, 8, 1, 1, 1]), torch.Size([2, 8, 3, 3, 3]))
    """


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
