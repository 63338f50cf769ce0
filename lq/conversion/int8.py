"""The int8 layers of a converted model: thin modules around PyTorch's quantized kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lq.compat.torch_private import BatchNorm, quantized_per_channel, quantized_per_tensor
from lq.core.layer import QATLayer
from lq.core.modules import (
    QATConv1d,
    QATConv2d,
    QATConv3d,
    QATConvTranspose1d,
    QATConvTranspose2d,
    QATConvTranspose3d,
    QATLinear,
)
from lq.core.own_class import Converted

_NAMES: dict[type[QATLayer], str] = {
    QATLinear: "linear",
    QATConv1d: "conv1d",
    QATConv2d: "conv2d",
    QATConv3d: "conv3d",
    QATConvTranspose1d: "conv_transpose1d",
    QATConvTranspose2d: "conv_transpose2d",
    QATConvTranspose3d: "conv_transpose3d",
}


def has_kernel(layer: QATLayer, engine: str) -> bool:
    """Whether an engine has an int8 kernel for a layer that computes what it should.

    The transposed convolutions of onednn, to which x86 hands them, are wrong by dozens of steps in torch 2.15.

    Args:
        layer: of any shape.
        engine: of ``torch.backends.quantized``, e.g. "x86".

    Example:
        >>> from lq.config.specs import WeightSpec
        >>> from lq.core.state import QATState
        >>> state = QATState([], [], [])
        >>> plain = QATConv1d.from_float(torch.nn.Conv1d(1, 1, 2), WeightSpec(), state)
        >>> transposed = QATConvTranspose1d.from_float(torch.nn.ConvTranspose1d(1, 1, 2), WeightSpec(), state)
        >>> has_kernel(plain, "x86"), has_kernel(transposed, "x86"), has_kernel(transposed, "fbgemm")
        (True, False, True)
    """
    name = _NAMES[type(layer)]
    if name.startswith("conv_transpose") and engine not in _TRANSPOSING:
        return False
    return name not in ("conv3d", "conv_transpose3d") or engine != "qnnpack"


_TRANSPOSING = ("fbgemm", "qnnpack")
_CONVOLUTIONS = (QATConv1d, QATConv2d, QATConv3d)


@contextmanager
def quantized_engine(engine: str) -> Iterator[None]:
    """Run the block with another ``torch.backends.quantized`` engine; weights are packed for the engine in force.

    Args:
        engine: one of ``torch.backends.quantized.supported_engines``.

    Example:
        >>> engines, before = torch.backends.quantized.supported_engines, torch.backends.quantized.engine
        >>> with quantized_engine(engines[0]):
        ...     torch.backends.quantized.engine == engines[0]
        True
        >>> torch.backends.quantized.engine == before
        True
    """
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


class Int8Layer(Converted):
    """A convolution or linear layer on quantized tensors.

    Args:
        layer: the QAT layer to convert.
        bn: the BatchNorm to fold into it.
        relu: whether the kernel also applies a ReLU.
        scale: of the output.
        zero_point: of the output.
        input_grid: scale and zero point of the input.

    Example:
        >>> from lq.config.specs import WeightSpec
        >>> from lq.core.state import QATState
        >>> layer = QATLinear.from_float(torch.nn.Linear(2, 1, bias=False), WeightSpec(), QATState([], [], []))
        >>> _ = torch.nn.init.ones_(layer.weight)
        >>> int8 = Int8Layer(layer, None, relu=False, scale=0.5, zero_point=0, input_grid=(1.0, 0))
        >>> int8(quantized_per_tensor(torch.tensor([[3, 4]], dtype=torch.uint8), 1.0)).int_repr()  # 7 = 14 * 0.5
        tensor([[14]], dtype=torch.uint8)
    """

    def __init__(
        self,
        layer: QATLayer,
        bn: BatchNorm | None,
        relu: bool,
        scale: float,
        zero_point: int,
        input_grid: tuple[float, int],
    ) -> None:
        super().__init__()
        name = _NAMES[type(layer)]
        # Transposed convolutions have no kernel with a ReLU inside.
        self.relu = relu and name.startswith("conv_transpose")
        self.kernel: Callable[..., Tensor] = getattr(
            torch.ops.quantized, f"{name}_relu" if relu and not self.relu else name
        )
        prepack = getattr(torch.ops.quantized, f"{name}_prepack")
        # onednn's linear layers are a thousand times slower where the zero point of the input is not 0.
        slow = torch.backends.quantized.engine == "onednn" and isinstance(layer, QATLinear) and input_grid[1] != 0
        self.scale_without_zero_point = input_grid[0] if slow else None
        self.columns = _columns_that_onednn_needs(layer)
        self.packed = prepack(*_prepack_arguments(layer, bn, input_grid, slow, self.columns > 0))
        self.scale, self.zero_point = scale, zero_point
        # Kernels want a batch, which layers need not have; a linear layer has it with two dimensions.
        self.least_dimensions = layer.weight.dim()
        self.kind = type(layer).__name__.removeprefix("QAT")

    def forward(self, x: Tensor) -> Tensor:
        """Quantized in, quantized out."""
        if self.scale_without_zero_point is not None:
            x = quantized_per_tensor(x.int_repr(), self.scale_without_zero_point)
        if self.columns:
            x = F.pad(x, (0, self.columns))
        single = x.dim() < self.least_dimensions
        y = self.kernel(x.unsqueeze(0) if single else x, self.packed, self.scale, self.zero_point)
        y = y.squeeze(0) if single else y
        return torch.relu(y) if self.relu else y

    def extra_repr(self) -> str:
        """Kind of layer and output grid."""
        return f"{self.kind}, scale={self.scale:.4g}, zero_point={self.zero_point}"


def _prepack_arguments(
    layer: QATLayer, bn: BatchNorm | None, input_grid: tuple[float, int], zero_point_into_bias: bool, wider: bool
) -> tuple[Any, ...]:
    integers, scale, bias = layer.integer_weight(bn)
    input_scale, input_zero_point = input_grid
    if zero_point_into_bias:
        sums = integers.sum(dim=1, dtype=torch.int64).double() * scale.double()
        offset = (input_scale * input_zero_point) * sums
        bias = (-offset if bias is None else bias.double() - offset).float()
    if bias is not None and scale.dim():
        integers, scale = room_for_bias(integers, scale, bias, input_scale)
    if wider:
        integers = F.pad(integers, (0, 1))
    if scale.dim() == 0:
        weight = quantized_per_tensor(integers, float(scale))
    else:
        weight = quantized_per_channel(integers, scale, layer.channel_axis)
    bias = None if bias is None else bias.detach().float()
    if isinstance(layer, QATLinear):
        return weight, bias
    conv: Any = layer
    stride, dilation = list(conv.stride), list(conv.dilation)
    if isinstance(layer, _CONVOLUTIONS):
        return weight, bias, stride, _padding(layer), dilation, conv.groups
    return weight, bias, stride, list(conv.padding), list(conv.output_padding), dilation, conv.groups


def _columns_that_onednn_needs(layer: QATLayer) -> int:
    """How much wider an input has to be, and the kernel by one column of zeros, so that oneDNN computes what it should.

    Of kernels 8, 12, 16, ... wide with fewer than 32 channels it returns something else: seen with torch 2.14 on a CPU
    with VNNI, and not with fbgemm.
    """
    if torch.backends.quantized.engine not in ("x86", "onednn") or not isinstance(layer, _CONVOLUTIONS):
        return 0
    width = layer.weight.shape[-1]
    return int(layer.dilation[-1]) if width >= 8 and width % 4 == 0 and layer.weight.shape[1] < 32 else 0


def room_for_bias(integers: Tensor, scale: Tensor, bias: Tensor, input_scale: float) -> tuple[Tensor, Tensor]:
    """Make the scale of (almost) dead channels larger, so that their bias fits into the int32 that it is added as.

    It concerns channels whose bias is 2**30 steps of their weights: those weights add nothing that the output resolves.

    Args:
        integers: int8 weight, its channels in front.
        scale: of each channel.
        bias: of each channel, in float.
        input_scale: of the input.

    Returns:
        integers and scales that stand for the same weights; the given ones if every bias fits.

    Example:
        >>> integers, scale = torch.tensor([[100], [100]], dtype=torch.int8), torch.tensor([1e-3, 1e-12])
        >>> room_for_bias(integers, scale, torch.tensor([1.0, 1.0]), input_scale=0.1)
        (tensor([[100],
                [  0]], dtype=torch.int8), tensor([1.0000e-03, 9.3132e-09]))
    """
    wider = torch.maximum(scale, bias.abs() / (input_scale * 2**30))
    if torch.equal(wider, scale):
        return integers, scale
    ratio = (scale / wider).reshape(-1, *[1] * (integers.dim() - 1))
    return torch.round(integers * ratio).to(torch.int8), wider


def _padding(layer: QATConv1d | QATConv2d | QATConv3d) -> list[int]:
    if layer.padding == "valid":
        return [0] * len(layer.kernel_size)
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [t // 2 for t in total]
    return [int(p) for p in layer.padding]
