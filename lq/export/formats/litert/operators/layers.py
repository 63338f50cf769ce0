"""Convolutions, linear layers and products of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lq.export.formats.litert.call import OperatorCall, UnsupportedError, Weight, array
from lq.export.formats.litert.file import LiteRTGrid, Size
from lq.export.formats.litert.operators.padding import Window, check_batch, padded
from lq.export.formats.litert.orders import CHANNELS_LAST
from lq.export.formats.litert.tensors import FixedBatchError, Value


@dataclass(frozen=True)
class _Filter:
    """The weight of a layer in torch's layout, int8 with scales or float."""

    content: Tensor
    scales: Tensor | None
    axis: int
    name: str

    @classmethod
    def of(cls, call: OperatorCall) -> _Filter:
        weight = call["weight"]
        if isinstance(weight, Weight) and call.grid is not None:
            return cls(weight.integers, weight.scales, weight.axis, weight.name)
        if isinstance(weight, (Weight, Tensor)):
            name = weight.name if isinstance(weight, Weight) else call.name
            return cls(weight.real() if isinstance(weight, Weight) else weight, None, 0, name)
        raise UnsupportedError(f"{call.name} has a weight that is computed from its inputs")

    def changed(self, content: Tensor) -> _Filter:
        """With other content."""
        return replace(self, content=content)

    def add(self, call: OperatorCall, dimensions: Sequence[int], axis: int) -> int:
        """A constant of the file, its dimensions in another order."""
        content = array(self.content.permute(*dimensions))
        grid = None if self.scales is None else LiteRTGrid(tuple(self.scales.reshape(-1).tolist()), 0, axis)
        return call.net.constant(content, f"{self.name}/weight", grid)


def _bias(call: OperatorCall, x: Value, weight: _Filter, channels: int) -> int:
    given = call.get("bias")
    if given is not None and not isinstance(given, Tensor):
        raise UnsupportedError(f"{call.name} has a bias that is computed from its inputs")
    bias = torch.zeros(channels) if given is None else given.float()
    name = f"{weight.name}/bias"
    if weight.scales is None:
        return call.net.constant(array(bias), name)
    grid = call.net.grid(x)
    assert grid is not None
    steps = array(weight.scales.reshape(-1).double()) * grid.scale
    integers = np.clip(np.round(array(bias.double()) / steps), -(2**31) + 1, 2**31 - 1).astype(np.int32)
    return call.net.constant(integers, name, LiteRTGrid(tuple(steps.astype(np.float32).tolist())))


def conv(call: OperatorCall) -> Value:
    """A convolution of one or two dimensions.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.Conv2d(8, 16, 3, padding=1), image=torch.zeros(1, 8, 6, 6)))
        layer: float32 [1, 6, 6, 16] = CONV_2D(image, layer/weight: float32 [16, 3, 3, 8], layer/bias: float32 [16],
        strideH=1, strideW=1)
        >>> print(listing_of(torch.nn.Conv2d(8, 16, 3, groups=8), image=torch.zeros(1, 8, 6, 6)))
        layer: float32 [1, 4, 4, 16] = DEPTHWISE_CONV_2D(image, layer/weight: float32 [1, 3, 3, 16], layer/bias: float32
        [16], strideH=1, strideW=1, padding=VALID, depthMultiplier=2)
    """
    weight = _Filter.of(call)
    rank = weight.content.dim()
    if rank not in (3, 4):
        raise UnsupportedError(f"{call.name} is a convolution of {rank - 2} dimensions")
    check_batch(call, rank)
    x = call.net.channels_last(call.value("input"))
    window = Window(
        _pair(weight.content.shape[2:], 1),
        _pair(call["stride"], 1),
        _pair(call["dilation"], 1),
    )
    tensor = _in_two_dimensions(call, x)
    sizes = _pair(call.net.lengths(x)[2:], 1)
    out = _pair([size.length for size in call.shape[2:]], 1)
    before = window.before(sizes, call["padding"])
    tensor, scheme = padded(call, tensor, window, sizes, out, before)
    if rank == 3:
        weight = weight.changed(weight.content.unsqueeze(2))
    channels, groups = weight.content.shape[0], call["groups"]
    settings = {**window.settings, "padding": scheme, "fusedActivationFunction": call.activation}
    if groups > 1 and weight.content.shape[1] == 1:
        # One input channel a group: [outputs, 1, height, width] becomes [1, height, width, outputs].
        filters = weight.add(call, (1, 2, 3, 0), 3)
        multiplier = channels // groups
        kind, options, settings["depthMultiplier"] = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions", multiplier
    else:
        filters = weight.add(call, (0, 2, 3, 1), 0)
        kind, options = "CONV_2D", "Conv2DOptions"
        if groups > 1:
            settings["version"] = 6
    inputs = [tensor, filters, _bias(call, x, weight, channels)]
    return _written(call, kind, inputs, options, settings)


def _in_two_dimensions(call: OperatorCall, x: Value) -> int:
    """A tensor of height, width and channels, whose height is 1 where there is none."""
    lying = call.net.of(x).shape
    return call.net.reshape_axes(x.tensor, lying if len(lying) == 4 else (lying[0], Size(1), *lying[1:]))


def _written(call: OperatorCall, kind: str, inputs: list[int], options: str, settings: dict[str, Any]) -> Value:
    order = CHANNELS_LAST[len(call.shape)]
    if len(call.shape) == 4:
        return call.write_in(kind, inputs, order, options, **settings)
    lying = tuple(call.shape[dimension] for dimension in order)
    target = call.net.new(call.name, (lying[0], Size(1), *lying[1:]), call.grid)
    call.net.file.operator(kind, inputs, [target], options, **settings)
    return Value(call.net.reshape_axes(target, lying), order)


def conv_transpose(call: OperatorCall) -> Value:
    """A transposed convolution of one or two dimensions.

    LiteRT's has neither groups nor dilation, and pads differently: zeros in the kernel stand for the first two and for
    ``output_padding``, and what ``padding`` cuts off is cut off behind it.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.ConvTranspose2d(4, 9, 3, padding=1), image=torch.zeros(1, 4, 6, 6)))
        layer: float32 [1, 8, 8, 9] = TRANSPOSE_CONV([1, 8, 8, 9], layer/weight: float32 [9, 3, 3, 4], image,
        layer/bias: float32 [9], strideH=1, strideW=1, padding=VALID)
        layer/cut: float32 [1, 6, 6, 9] = SLICE(layer, [0, 1, 1, 0], [-1, 6, 6, -1])
    """
    weight = _dense(call, _Filter.of(call))
    check_batch(call, weight.content.dim())
    x = call.net.channels_last(call.value("input"))
    if weight.content.dim() == 3:
        weight = weight.changed(weight.content.unsqueeze(2))
    if weight.content.dim() != 4:
        raise UnsupportedError(f"{call.name} is a transposed convolution of {weight.content.dim() - 2} dimensions")
    stride = _pair(call["stride"], 1)
    cut = _pair(call["padding"], 0)
    more = _pair(call["output_padding"], 0)
    weight = weight.changed(_spread(weight.content, _pair(call["dilation"], 1), more))
    sizes = _pair(call.net.lengths(x)[2:], 1)
    whole = [(n - 1) * s + k for n, s, k in zip(sizes, stride, weight.content.shape[2:], strict=True)]
    out = _pair([size.length for size in call.shape[2:]], 1)
    tensor, channels = _in_two_dimensions(call, x), weight.content.shape[1]
    batch = call.shape[0]
    if batch.changes:
        raise FixedBatchError(f"{call.name} is told the size of its result")
    inputs = [
        call.net.integers([batch.length, *whole, channels]),
        weight.add(call, (1, 2, 3, 0), 0),
        tensor,
        _bias(call, x, weight, channels),
    ]
    target = call.net.new(call.name, [batch, *map(Size, whole), Size(channels)], call.grid)
    settings = {"strideH": stride[0], "strideW": stride[1], "padding": _valid(), "version": 3}
    call.net.file.operator("TRANSPOSE_CONV", inputs, [target], "TransposeConvOptions", **settings)
    if list(whole) != list(out):
        sliced = call.net.new(f"{call.name}/cut", [batch, *map(Size, out), Size(channels)], call.grid)
        begin, size = call.net.integers([0, *cut, 0]), call.net.integers([-1, *out, -1])
        call.net.file.operator("SLICE", [target, begin, size], [sliced], "SliceOptions")
        target = sliced
    order = CHANNELS_LAST[len(call.shape)]
    return Value(call.net.reshape_axes(target, tuple(call.shape[dimension] for dimension in order)), order)


def _dense(call: OperatorCall, weight: _Filter) -> _Filter:
    """Without groups: zeros between outputs and the inputs of other groups."""
    groups = call["groups"]
    if groups == 1:
        return weight
    inputs, outputs, *kernel = weight.content.shape
    if weight.scales is not None and weight.scales.numel() > 1 and weight.axis == 1:
        weight = _Filter(weight.content, weight.scales.repeat(groups), 1, weight.name)
    dense = weight.content.new_zeros(inputs, groups * outputs, *kernel)
    for group, part in enumerate(weight.content.chunk(groups)):
        rows, columns = inputs // groups, outputs
        dense[group * rows : (group + 1) * rows, group * columns : (group + 1) * columns] = part
    return weight.changed(dense)


def _spread(content: Tensor, dilation: Sequence[int], more: Sequence[int]) -> Tensor:
    """A kernel with the zeros of its dilation, and others behind it."""
    *channels, height, width = content.shape
    whole = [(k - 1) * d + 1 + m for k, d, m in zip((height, width), dilation, more, strict=True)]
    spread = content.new_zeros(*channels, *whole)
    spread[..., : whole[0] - more[0] : dilation[0], : whole[1] - more[1] : dilation[1]] = content
    return spread


def linear(call: OperatorCall) -> Value:
    """A linear layer on the last dimension.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.ReLU())
        >>> print(listing_of(net, x=torch.zeros(2, 5, 4)))
        layer.0: float32 [2, 5, 9] = FULLY_CONNECTED(x, layer.0/weight: float32 [9, 4], layer.0/bias: float32 [9],
        keepNumDims=True, RELU)
    """
    x, weight = call.value("input"), _Filter.of(call)
    if x.shape is not None:
        x, weight = _as_it_lies(call, x, weight)
    last = len(call.net.shape(x)) - 1
    if x.order[-1] != last:
        x = call.net.plain(x)
    filters, channels = weight.add(call, (0, 1), 0), weight.content.shape[0]
    inputs = [x.tensor, filters, _bias(call, x, weight, channels)]
    settings = {"keepNumDims": True, "fusedActivationFunction": call.activation}
    return call.write_in("FULLY_CONNECTED", inputs, x.order, "FullyConnectedOptions", **settings)


def _as_it_lies(call: OperatorCall, x: Value, weight: _Filter) -> tuple[Value, _Filter]:
    """An image flattened in the order in which it lies, and the weight's columns in the same."""
    assert x.shape is not None
    source = Value(x.tensor, x.order)
    before, after = call.net.shape(source), x.shape
    if len(after) != 2 or before[0] != after[0] or source.order[0] != 0:
        return call.net.plain(x), weight
    flat = call.net.reshape_axes(x.tensor, after)
    columns = weight.content.reshape(-1, *(size.length for size in before[1:]))
    content = columns.permute(*source.order).reshape(weight.content.shape)
    return Value(flat, (0, 1)), weight.changed(content)


def matmul(call: OperatorCall) -> Value:
    """A product of matrices, or of batches of them.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x, y: x @ y.transpose(1, 2), x=torch.zeros(2, 5, 4), y=torch.zeros(2, 7, 4)))
        matmul: float32 [2, 5, 7] = BATCH_MATMUL(x, y, adjY=True)
    """
    names = ("self", "mat2") if call.get("mat2") is not None else ("self", "other")
    (left, adjoint_left), (right, adjoint_right) = (_matrices(call, call.value(name)) for name in names)
    order = tuple(range(len(call.shape)))
    settings = {"adjX": adjoint_left, "adjY": adjoint_right}
    return call.write_in("BATCH_MATMUL", [left.tensor, right.tensor], order, "BatchMatMulOptions", **settings)


def _matrices(call: OperatorCall, value: Value) -> tuple[Value, bool]:
    """Matrices whose rows and columns may lie the other way round."""
    rank = len(call.net.shape(value))
    if rank < 2:
        raise UnsupportedError(f"{call.name} multiplies a vector")
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    return (value, True) if value.shape is None and value.order == swapped else (call.net.plain(value), False)


def _pair(given: Sequence[int] | int, filling: int) -> tuple[int, int]:
    """Of height and width; a single one is that of the width."""
    sizes = [given] if isinstance(given, int) else list(given)
    return (sizes[0], sizes[1]) if len(sizes) == 2 else (filling, sizes[0])


def _valid() -> int:
    from ai_edge_litert.schema_py_generated import Padding

    return int(Padding.VALID)
