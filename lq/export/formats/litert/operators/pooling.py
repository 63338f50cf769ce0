"""Maxima and averages over windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lq.export.formats.litert.call import OperatorCall, UnsupportedError
from lq.export.formats.litert.file import LiteRTGrid
from lq.export.formats.litert.operators.padding import Pair, Window, check_batch, padded
from lq.export.formats.litert.operators.reductions import reduced
from lq.export.formats.litert.orders import CHANNELS_LAST
from lq.export.formats.litert.tensors import Value

_LAST = CHANNELS_LAST[4]


def max_pool(call: OperatorCall) -> Value:
    """The largest value of each window, on the grid that they lie on.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.MaxPool2d(2), step=0.5, image=torch.zeros(1, 4, 8, 8)))
        max_pool2d: 0.5 * int8 [1, 4, 4, 4] = MAX_POOL_2D(image, padding=VALID, strideH=2, strideW=2, filterHeight=2,
        filterWidth=2)
    """
    call = call.on(call.net.grid(call["self"]))
    x = call.net.channels_last(call["self"])
    if set(_pair(call["dilation"])) != {1}:
        raise UnsupportedError(f"{call.name} is a max pooling with dilation")
    grid = call.grid
    lowest = -128 if grid else float(np.finfo(np.float32).min)
    return _pool(call, x, "MAX_POOL_2D", lowest)


def avg_pool(call: OperatorCall) -> Value:
    """The average of each window.

    On integers it is a depthwise convolution with ones, which rounds once to any grid; LiteRT's own average keeps the
    grid of its input.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.AvgPool2d(2), image=torch.zeros(1, 4, 8, 8)))
        avg_pool2d: float32 [1, 4, 4, 4] = AVERAGE_POOL_2D(image, padding=VALID, strideH=2, strideW=2, filterHeight=2,
        filterWidth=2)
        >>> print(listing_of(torch.nn.AvgPool2d(2), step=0.5, image=torch.zeros(1, 4, 8, 8)))
        avg_pool2d: 0.5 * int8 [1, 4, 4, 4] = DEPTHWISE_CONV_2D(image, avg_pool2d/weight: scales * int8 [1, 2, 2, 4],
        [0, 0, 0, 0], strideH=2, strideW=2, padding=VALID, depthMultiplier=1)
    """
    x = call.net.channels_last(call.value("self"))
    window, before = _window(call)
    if not divides_unevenly(call):
        return _average(call, x, window, before)
    mean = _pool(call.on(None, "mean"), x, "AVERAGE_POOL_2D", 0.0)
    factors = _factors(call).permute(0, 2, 3, 1).contiguous().numpy()
    inputs = [mean.tensor, call.net.constant(factors, f"{call.name}/factors")]
    return call.write_in("MUL", inputs, _LAST, "MulOptions", fusedActivationFunction=call.activation)


def divides_unevenly(call: OperatorCall) -> bool:
    """Whether a window is not divided by its size: padding does not count, it is cut off, or a divisor is given.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.AvgPool2d(2, padding=1, count_include_pad=False), image=torch.zeros(1, 1, 4, 4)))
        image/pad: float32 [1, 6, 6, 1] = PADV2(image, [[0, 0], [1, 1], [1, 1], [0, 0]], [0])
        avg_pool2d/mean: float32 [1, 3, 3, 1] = AVERAGE_POOL_2D(image/pad, padding=VALID, strideH=2, strideW=2,
        filterHeight=2, filterWidth=2)
        avg_pool2d: float32 [1, 3, 3, 1] = MUL(avg_pool2d/mean, avg_pool2d/factors: float32 [1, 3, 3, 1])
    """
    return bool((_factors(call) != 1).any())


def _factors(call: OperatorCall) -> Tensor:
    """By what the mean of each whole window, zeros around the image included, is multiplied."""
    window, before = _window(call)
    sizes, out = call.net.lengths(call["self"])[2:], _out(call)
    needed = ((o - 1) * s + k for o, s, k in zip(out, window.stride, window.kernel, strict=True))
    after = [max(0, n - size - b) for n, size, b in zip(needed, sizes, before, strict=True)]
    ones = torch.ones(1, 1, *sizes)
    whole = F.pad(ones, (before[1], after[1], before[0], after[0]))
    settings = (call.get("ceil_mode", False), call.get("count_include_pad", True), call.get("divisor_override"))
    right = F.avg_pool2d(ones, window.kernel, window.stride, before, *settings)
    return right / F.avg_pool2d(whole, window.kernel, window.stride)[..., : out[0], : out[1]]


def _average(call: OperatorCall, x: Value, window: Window, before: Pair) -> Value:
    channels = call.shape[1].length
    given = call.net.grid(x)
    if call.grid is None or given is None:
        return _pool(call, x, "AVERAGE_POOL_2D", 0.0)
    area = window.kernel[0] * window.kernel[1]
    weights = np.ones((1, *window.kernel, channels), np.int8)
    filters = call.net.constant(
        weights, f"{call.name}/weight", LiteRTGrid((float(np.float32(1 / area)),) * channels, 0, 3)
    )
    steps = LiteRTGrid((float(np.float32(given.scale / area)),) * channels)
    bias = call.net.constant(np.zeros(channels, np.int32), f"{call.name}/bias", steps)
    tensor, scheme = padded(call, x.tensor, window, _sizes(call, x), _out(call), before)
    settings = {**window.settings, "padding": scheme, "depthMultiplier": 1}
    return call.write_in("DEPTHWISE_CONV_2D", [tensor, filters, bias], _LAST, "DepthwiseConv2DOptions", **settings)


def _pool(call: OperatorCall, x: Value, kind: str, fill: int | float) -> Value:
    window, before = _window(call)
    # What the scheme SAME adds does not count in LiteRT's averages; what torch pads does.
    same = kind != "AVERAGE_POOL_2D"
    tensor, scheme = padded(call, x.tensor, window, _sizes(call, x), _out(call), before, fill, same)
    settings = {
        "padding": scheme,
        "strideH": window.stride[0],
        "strideW": window.stride[1],
        "filterHeight": window.kernel[0],
        "filterWidth": window.kernel[1],
    }
    return call.write_in(kind, [tensor], _LAST, "Pool2DOptions", **settings)


def _window(call: OperatorCall) -> tuple[Window, Pair]:
    check_batch(call)
    kernel = _pair(call["kernel_size"])
    return Window(kernel, _pair(call.get("stride") or kernel)), _pair(call.get("padding") or 0)


def adaptive_avg_pool(call: OperatorCall) -> Value:
    """The averages of equal parts of an image.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.AdaptiveAvgPool2d(1), step=0.5, image=torch.zeros(1, 4, 6, 6)))
        adaptive_avg_pool2d: 0.5 * int8 [1, 1, 1, 4] = MEAN(image, [1, 2], keepDims=True)
        >>> print(listing_of(torch.nn.AdaptiveAvgPool2d(3), image=torch.zeros(1, 4, 6, 6)))
        adaptive_avg_pool2d: float32 [1, 3, 3, 4] = AVERAGE_POOL_2D(image, padding=VALID, strideH=2, strideW=2,
        filterHeight=2, filterWidth=2)
    """
    check_batch(call)
    x = call.value("self")
    size, out = call.net.lengths(x)[2:], [size.length for size in call.shape[2:]]
    if list(size) == out:
        return x if call.grid is None else call.net.on_grid(x, call.grid, call.name)
    if set(out) == {1}:
        return reduced(call, "MEAN", x, [2, 3], keep=True)
    if any(n % o for n, o in zip(size, out, strict=True)):
        raise UnsupportedError(f"{call.name} pools {tuple(size)} pixels to {tuple(out)}, which is no whole number each")
    kernel = size[0] // out[0], size[1] // out[1]
    given = {"kernel_size": kernel, "stride": kernel, "padding": 0}
    call = OperatorCall(call.net, call.name, {**call.arguments, **given}, call.shape, call.grid)
    return _average(call, call.net.channels_last(x), Window(kernel, kernel), (0, 0))


def _sizes(call: OperatorCall, x: Value) -> Pair:
    height, width = call.net.lengths(x)[2:]
    return height, width


def _out(call: OperatorCall) -> Pair:
    height, width = (size.length for size in call.shape[2:])
    return height, width


def _pair(given: Sequence[int] | int) -> Pair:
    sizes = [given] if isinstance(given, int) else list(given)
    return sizes[0], sizes[-1]
