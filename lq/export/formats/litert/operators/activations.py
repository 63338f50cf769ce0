"""Activations, clamps and softmax."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from torch import Tensor

from lq.export.formats.litert.call import Bounds, Builder, OperatorCall, UnsupportedError, array
from lq.export.formats.litert.file import LiteRTGrid
from lq.export.formats.litert.operators.elementwise import joined
from lq.export.formats.litert.orders import CHANNELS_LAST
from lq.export.formats.litert.tensors import Value

# What LiteRT's specification of int8 demands of these results.
_UNIT = LiteRTGrid.of(1 / 256, -128)
_SIGNED_UNIT = LiteRTGrid.of(1 / 128, 0)


def bounded(kind: str, grid: LiteRTGrid) -> Builder:
    """A function whose int8 results lie on the one grid that the specification has for them.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.sigmoid, step=0.25, x=torch.zeros(3)))
        sigmoid/logistic: 0.003906 * (int8 + 128) [3] = LOGISTIC(x)
        sigmoid: 0.25 * int8 [3] = MUL(sigmoid/logistic, [1])
    """

    def build(call: OperatorCall) -> Value:
        x = call.value("self")
        if call.grid is None:
            return call.write(kind, [x.tensor], x)
        return call.net.on_grid(call.on(grid, kind.lower()).write(kind, [x.tensor], x), call.grid, call.name)

    return build


sigmoid = bounded("LOGISTIC", _UNIT)
tanh = bounded("TANH", _SIGNED_UNIT)


def leaky_relu(call: OperatorCall) -> Value:
    """A ReLU with a slope.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.LeakyReLU(0.2), step=0.5, x=torch.zeros(3)))
        leaky_relu: 0.5 * int8 [3] = LEAKY_RELU(x, alpha=0.2)
    """
    x = call.value("self")
    return call.write("LEAKY_RELU", [x.tensor], x, "LeakyReluOptions", alpha=float(call["negative_slope"]))


def gelu(call: OperatorCall) -> Value:
    """GELU, exact or by tanh.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.GELU("tanh"), step=0.5, x=torch.zeros(3)))
        gelu: 0.5 * int8 [3] = GELU(x, approximate=True)
    """
    x = call.value("self")
    return call.write("GELU", [x.tensor], x, "GeluOptions", approximate=call.get("approximate") == "tanh")


def silu(call: OperatorCall) -> Value:
    """``x * sigmoid(x)``.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.SiLU(), step=0.5, x=torch.zeros(3)))
        silu/sigmoid: 0.003906 * (int8 + 128) [3] = LOGISTIC(x)
        silu: 0.5 * int8 [3] = MUL(x, silu/sigmoid)
    """
    x = call.value("self")
    gate = call.on(None if call.grid is None else _UNIT, "sigmoid").write("LOGISTIC", [x.tensor], x)
    return joined(call, "MUL", x, gate, "MulOptions")


def hardsigmoid(call: OperatorCall) -> Value:
    """``relu6(x + 3) / 6``: on integers the division is a change of the scale alone.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.Hardsigmoid(), step=0.5, x=torch.zeros(3)))
        hardsigmoid/sum: 3 * int8 [3] = ADD(x, 3, RELU6)
        hardsigmoid: 0.5 * int8 [3] = MUL(hardsigmoid/sum, 0.1667)
    """
    sum_of = replace(
        call.on(None if call.grid is None else LiteRTGrid.of(6 * call.grid.scale, call.grid.zero_point), "sum"),
        bounds=Bounds(0.0, 6.0),
    )
    shifted = joined(sum_of, "ADD", sum_of.value("self"), sum_of.taken(3.0), "AddOptions")
    sixth = call.taken(1 / 6)
    return joined(replace(call, bounds=Bounds()), "MUL", shifted, sixth, "MulOptions")


def hardtanh(call: OperatorCall) -> Value:
    """A clamp.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.Hardtanh(), x=torch.zeros(3)))
        hardtanh: float32 [3] = RELU_N1_TO_1(x)
    """
    return clamp(replace(call, arguments={**call.arguments, "min": call["min_val"], "max": call["max_val"]}))


def clamp(call: OperatorCall) -> Value:
    """A clamp, as the ReLU that it may be; integers are clamped behind their rounding.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x.clamp(0.0, 1.0), x=torch.zeros(3)))
        clamp: float32 [3] = MAXIMUM(x, 0)
        clamp_2: float32 [3] = MINIMUM(clamp, 1)
    """
    low, high = call.get("min"), call.get("max")
    if any(isinstance(limit, Value) or (isinstance(limit, Tensor) and limit.numel() > 1) for limit in (low, high)):
        raise UnsupportedError(f"{call.name} clamps by a tensor; write torch.maximum and torch.minimum")
    bounds = Bounds(-math.inf if low is None else float(low), math.inf if high is None else float(high))
    if call.grid is not None:
        return clamped(call, call.net.on_grid(call["self"], call.grid, call.name), bounds, call.grid)
    x = call.value("self")
    if bounds.activation not in ("", "NONE"):
        return call.write(bounds.activation, [x.tensor], x)
    for kind, limit in (("MAXIMUM", bounds.low), ("MINIMUM", bounds.high)):
        if math.isfinite(limit):
            x = call.write(kind, [x.tensor, call.taken(limit).tensor], x, "MaximumMinimumOptions")
    return x


def clamped(call: OperatorCall, value: Value, bounds: Bounds, grid: LiteRTGrid) -> Value:
    """Integers within bounds, where their saturation goes beyond.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x.clamp(-99.0, 1.0), step=0.25, x=torch.zeros(3)))
        clamp/minimum: 0.25 * int8 [3] = MINIMUM(x, 1)
    """
    for kind, limit in (("MAXIMUM", bounds.low), ("MINIMUM", bounds.high)):
        integer = grid.integer(limit) if math.isfinite(limit) else None
        if integer is None or (integer <= -128 if kind == "MAXIMUM" else integer >= 127):
            continue
        # A limit beyond the far end leaves that end alone.
        constant = call.net.constant(np.array(max(-128, min(127, integer)), np.int8), f"{call.name}/limit", grid)
        made = call.net.like(value, f"{call.name}/{kind.lower()}", grid)
        call.net.file.operator(kind, [value.tensor, constant], [made.tensor], "MaximumMinimumOptions")
        value = made
    return value


def softmax(call: OperatorCall) -> Value:
    """A softmax over one dimension, which has to lie last.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.Softmax(1), step=0.25, x=torch.zeros(1, 5, 4)))
        x/transpose: 0.25 * int8 [1, 4, 5] = TRANSPOSE(x, [0, 2, 1])
        softmax/softmax: 0.003906 * (int8 + 128) [1, 4, 5] = SOFTMAX(x/transpose, beta=1.0)
        softmax: 0.25 * int8 [1, 4, 5] = MUL(softmax/softmax, [[[1]]])
        softmax/transpose: 0.25 * int8 [1, 5, 4] = TRANSPOSE(softmax, [0, 2, 1])
    """
    x = _with_last(call, call.value("self"), call["dim"])
    if call.grid is None:
        return call.write("SOFTMAX", [x.tensor], x, "SoftmaxOptions", beta=1.0)
    made = call.on(_UNIT, "softmax").write("SOFTMAX", [x.tensor], x, "SoftmaxOptions", beta=1.0)
    return call.net.on_grid(made, call.grid, call.name)


def log_softmax(call: OperatorCall) -> Value:
    """The logarithm of a softmax over one dimension, which has to lie last.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.LogSoftmax(-1), x=torch.zeros(3, 4)))
        log_softmax: float32 [3, 4] = LOG_SOFTMAX(x)
    """
    x = _with_last(call, call.value("self"), call["dim"])
    return call.write("LOG_SOFTMAX", [x.tensor], x, "LogSoftmaxOptions")


def _with_last(call: OperatorCall, x: Value, dimension: int) -> Value:
    """A tensor with a dimension last, as near to how it lies as can be."""
    rank = len(call.net.shape(x))
    dimension %= rank
    if x.shape is not None or x.order[-1] != dimension:
        last = CHANNELS_LAST.get(rank, ())
        order = tuple(d for d in range(rank) if d != dimension)
        x = call.net.ordered(x, last if last and last[-1] == dimension else (*order, dimension))
    return x


def prelu(call: OperatorCall) -> Value:
    """A ReLU with a slope for each channel.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.PReLU(2), image=torch.zeros(1, 2, 8, 8)))
        layer: float32 [1, 8, 8, 2] = PRELU(image, [[[0.25, 0.25]]])
    """
    x = call.value("self")
    slope = call["weight"].reshape(-1, *[1] * (len(call.shape) - 2))
    order = x.order if x.shape is None else tuple(range(len(call.shape)))
    slopes = slope.reshape(*[1] * (len(call.shape) - slope.dim()), *slope.shape).permute(order)
    constant = call.net.constant(array(slopes[0] if len(slopes) == 1 else slopes), f"{call.name}/slope")
    return call.write("PRELU", [call.net.ordered(x, order).tensor, constant], call.net.ordered(x, order))
