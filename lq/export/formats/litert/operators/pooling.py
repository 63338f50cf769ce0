"""Maxima and averages over windows and whole dimensions, and resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lq.export.formats.litert.call import Builder, OperatorCall, UnsupportedError
from lq.export.formats.litert.file import LiteRTGrid
from lq.export.formats.litert.operators.padding import Pair, Window, check_batch, pad_axes, padded
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


def reduction(kind: str) -> Builder:
    """A mean, sum or maximum over some dimensions, or over all.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda image: image.amax(1), image=torch.zeros(1, 4, 6, 6)))
        amax: float32 [1, 6, 6] = REDUCE_MAX(image, [3])
    """

    def build(call: OperatorCall) -> Value:
        x = call.value("self")  # truth values as numbers, as a sum counts them
        rank = len(call.net.shape(x))
        dims = call.get("dim")
        dimensions = sorted({d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))})
        return reduced(call, kind, x, dimensions, bool(call.get("keepdim")))

    return build


def running_sum(call: OperatorCall) -> Value:
    """Sums of all elements up to each one of a dimension; of truth values, which it counts, and integers as floats.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: (x > 0).cumsum(1), x=torch.zeros(2, 4)))
        gt: bool [2, 4] = GREATER(x, 0)
        gt/cast: float32 [2, 4] = CAST(gt)
        cumsum: float32 [2, 4] = CUMSUM(gt/cast, [1])
        cumsum/cast: int64 [2, 4] = CAST(cumsum)
    """
    x = call.net.settled(call.value("self"))
    axis = call.net.integers([x.order.index(call["dim"] % len(call.shape))], "axis")
    return call.write("CUMSUM", [x.tensor, axis], x, "CumsumOptions")


def reduced(call: OperatorCall, kind: str, x: Value, dimensions: Sequence[int], keep: bool) -> Value:
    """The same over given dimensions.

    Example:
        >>> from lq.export.formats.litert.listing import listing
        >>> from lq.export.formats.litert.file import Size
        >>> from lq.export.formats.litert.tensors import Tensors
        >>> net = Tensors()
        >>> image = Value(net.new("image", [Size(1), Size(6), Size(6), Size(4)]), order=_LAST)
        >>> call = OperatorCall(net, "mean", {"self": image}, (Size(1), Size(4)))
        >>> made = reduced(call, "MEAN", image, dimensions=[2, 3], keep=False)
        >>> print(listing(net.file))
        mean: float32 [1, 4] = MEAN(image, [1, 2])
    """
    x = call.net.settled(x)
    axes = call.net.integers(sorted(x.order.index(dimension) for dimension in dimensions), "axes")
    order = x.order if keep else _without(x.order, dimensions)
    return call.write_in(kind, [x.tensor, axes], order, "ReducerOptions", keepDims=keep)


def _without(order: Sequence[int], dimensions: Sequence[int]) -> tuple[int, ...]:
    return tuple(d - sum(gone < d for gone in dimensions) for d in order if d not in dimensions)


def resize_nearest(call: OperatorCall) -> Value:
    """To another size, each pixel as its nearest one.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.Upsample(scale_factor=2), image=torch.zeros(1, 4, 6, 6)))
        upsample_nearest2d: float32 [1, 12, 12, 4] = RESIZE_NEAREST_NEIGHBOR(image, [12, 12])
    """
    return _resize(call.on(call.net.grid(call["input"])), "RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions")


def resize_bilinear(call: OperatorCall) -> Value:
    """To another size; on integers on the grid of the input, and from there to that of the result.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.UpsamplingBilinear2d(scale_factor=2), image=torch.zeros(1, 4, 6, 6)))
        upsample_bilinear2d: float32 [1, 12, 12, 4] = RESIZE_BILINEAR(image, [12, 12], alignCorners=True)
    """
    aligned = bool(call["align_corners"])
    settings = {"alignCorners": aligned, "halfPixelCenters": not aligned}
    own = call if call.grid is None else call.on(call.net.grid(call["input"]), "resize")
    made = _resize(own, "RESIZE_BILINEAR", "ResizeBilinearOptions", **settings)
    return made if call.grid is None else call.net.on_grid(made, call.grid, call.name)


def _resize(call: OperatorCall, kind: str, options: str, **settings: bool) -> Value:
    x = call.net.channels_last(call.value("input"))
    if len(call.shape) != 4:
        raise UnsupportedError(f"{call.name} resizes {len(call.shape) - 2} dimensions, not two")
    if not settings.get("alignCorners"):
        _check_factors(call, x)
    out = call.net.integers([size.length for size in call.shape[2:]])
    return call.write_in(kind, [x.tensor, out], _LAST, options, **settings)


def _check_factors(call: OperatorCall, x: Value) -> None:
    """Torch goes by the factors that it is given, LiteRT by the sizes that result."""
    factors = call.get("scale_factors") or [call.get("scales_h"), call.get("scales_w")]
    for factor, size, out in zip(factors, _sizes(call, x), _out(call), strict=True):
        if factor is not None and not math.isclose(size * factor, out):
            raise UnsupportedError(
                f"{call.name} resizes {size} pixels by {factor:g} to {out}, and LiteRT by {out}/{size}; pass size=, or "
                "recompute_scale_factor=True"
            )


def pad(call: OperatorCall) -> Value:
    """Values around a tensor: zeros, another number, or its own mirrored, on the grid that it lies on.

    A number that lies on another grid than the tensor brings it to that of the result first, or to float.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda image: F.pad(image, (1, 2)), image=torch.zeros(1, 4, 6, 6)))
        image/pad: float32 [1, 6, 9, 4] = PAD(image, [[0, 0], [0, 0], [1, 2], [0, 0]])
        >>> print(listing_of(lambda image: F.pad(image, (1, 2, 0, 0), "reflect"), image=torch.zeros(1, 4, 6, 6)))
        pad: float32 [1, 6, 9, 4] = MIRROR_PAD(image, [[0, 0], [0, 0], [1, 2], [0, 0]])
    """
    x, mode = call["self"], call.get("mode", "constant")
    if mode == "constant" and leaves_grid(call):
        x = call.net.real(x) if call.grid is None else call.net.on_grid(x, call.grid, f"{call.name}/input")
    x = call.net.settled(x)
    given, rank = list(call["pad"]), len(call.shape)
    by_dimension = {rank - 1 - i // 2: (given[i], given[i + 1]) for i in range(0, len(given), 2)}
    pads = [by_dimension.get(dimension, (0, 0)) for dimension in x.order]
    if any(n < 0 for pair in pads for n in pair):
        raise UnsupportedError(f"{call.name} pads by a negative number")
    if mode == "reflect":
        return _mirrored(call, x, pads)
    if mode != "constant":
        raise UnsupportedError(f"{call.name} pads with mode {mode!r}")
    grid, number = call.net.grid(x), _number(call)
    fill = number if grid is None else _nearest(grid, number)
    return Value(pad_axes(call, x.tensor, pads, fill or (None if grid is None else fill)), x.order)


def leaves_grid(call: OperatorCall) -> bool:
    """Whether a padding adds a number that is beyond the grid of the tensor.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: F.pad(x, (0, 1), value=-1e9), step=0.5, x=torch.zeros(3)))
        x/pad: 0.5 * int8 [4] = PADV2(x, [[0, 1]], [-64])
    """
    grid, number = call.net.grid(call["self"]), _number(call)
    if grid is None or call.get("mode", "constant") != "constant":
        return False
    return abs((_nearest(grid, number) - grid.zero_point) * grid.scale - number) > 0.501 * grid.scale


def _number(call: OperatorCall) -> float:
    return float(call.get("value") or 0.0)


def _nearest(grid: LiteRTGrid, number: float) -> int:
    """The int8 value that comes nearest to a number."""
    ends = (-128 - grid.zero_point) * grid.scale, (127 - grid.zero_point) * grid.scale
    return grid.integer(max(ends[0], min(ends[1], number)))


def _mirrored(call: OperatorCall, x: Value, pads: Sequence[Pair]) -> Value:
    amounts = call.net.constant(np.array(pads, np.int32), "pads")
    call = call.on(call.net.grid(x))
    return call.write_in("MIRROR_PAD", [x.tensor, amounts], x.order, "MirrorPadOptions", mode=0)


def _sizes(call: OperatorCall, x: Value) -> Pair:
    height, width = call.net.lengths(x)[2:]
    return height, width


def _out(call: OperatorCall) -> Pair:
    height, width = (size.length for size in call.shape[2:])
    return height, width


def _pair(given: Sequence[int] | int) -> Pair:
    sizes = [given] if isinstance(given, int) else list(given)
    return sizes[0], sizes[-1]
