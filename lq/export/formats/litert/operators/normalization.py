"""Normalization, which computes in float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lq.export.formats.litert.call import OperatorCall
from lq.export.formats.litert.file import Size
from lq.export.formats.litert.operators.elementwise import joined
from lq.export.formats.litert.tensors import Value


def layer_norm(call: OperatorCall) -> Value:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last dimensions.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.LayerNorm(4, bias=False), x=torch.zeros(3, 4)))
        layer/mean: float32 [3, 1] = MEAN(x, [1], keepDims=True)
        layer/centred: float32 [3, 4] = SUB(x, layer/mean)
        layer/squares: float32 [3, 4] = MUL(layer/centred, layer/centred)
        ...
        layer/normalized: float32 [3, 4] = MUL(layer/centred, layer/rsqrt)
        layer/weight: float32 [3, 4] = MUL(layer/normalized, [[1, 1, 1, 1]])
    """
    x = call.net.plain(call.value("input"))
    rank = len(call.net.shape(x))
    axes = call.net.integers(range(rank - len(call["normalized_shape"]), rank), "axes")
    reduced = [Size(1) if d >= rank - len(call["normalized_shape"]) else size for d, size in enumerate(call.shape)]
    averaged = replace(call, shape=tuple(reduced))
    order = tuple(range(rank))

    def average(of: Value, name: str) -> Value:
        made = averaged.on(None, name)
        return made.write_in("MEAN", [of.tensor, axes], order, "ReducerOptions", keepDims=True)

    centred = joined(call.on(None, "centred"), "SUB", x, average(x, "mean"), "SubOptions")
    squares = joined(call.on(None, "squares"), "MUL", centred, centred, "MulOptions")
    variance = joined(
        averaged.on(None, "sum"), "ADD", average(squares, "variance"), call.taken(call["eps"]), "AddOptions"
    )
    inverse = averaged.on(None, "rsqrt").write("RSQRT", [variance.tensor], variance)
    result = joined(call.on(None, "normalized"), "MUL", centred, inverse, "MulOptions")
    for kind, name, options in (("MUL", "weight", "MulOptions"), ("ADD", "bias", "AddOptions")):
        if call.get(name) is not None:
            result = joined(call.on(None, name), kind, result, call.taken(call[name]), options)
    return result


def batch_norm(call: OperatorCall) -> Value:
    """A BatchNorm that stands alone: a factor and a summand for each channel.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.BatchNorm2d(2, eps=0.0), image=torch.zeros(1, 2, 8, 8)))
        layer/scaled: float32 [1, 8, 8, 2] = MUL(image, [[[[1, 1]]]])
        layer: float32 [1, 8, 8, 2] = ADD(layer/scaled, [[[[0, 0]]]])
    """
    factor, summand = (part.reshape(-1, *[1] * (len(call.shape) - 2)) for part in affine(call.arguments, call["eps"]))
    scaled = joined(call.on(None, "scaled"), "MUL", call.value("input"), call.taken(factor), "MulOptions")
    return joined(call, "ADD", scaled, call.taken(summand), "AddOptions")


def affine(constants: Mapping[str, Any], eps: float) -> tuple[Tensor, Tensor]:
    """Factor and summand of a BatchNorm with constant statistics.

    Example:
        >>> ones = torch.ones(1)
        >>> affine({"running_mean": 2 * ones, "running_var": 4 * ones, "weight": ones, "bias": None}, 0.0)
        (tensor([0.5000]), tensor([-1.]))
    """
    factor = torch.rsqrt(constants["running_var"].double() + eps)
    if constants.get("weight") is not None:
        factor = factor * constants["weight"].double()
    summand = -constants["running_mean"].double() * factor
    if constants.get("bias") is not None:
        summand = summand + constants["bias"].double()
    return factor.float(), summand.float()


def folded(call: OperatorCall, factor: Tensor, summand: Tensor) -> OperatorCall:
    """A convolution with the BatchNorm behind it inside.

    Example:
        >>> from lq.export.formats.litert.tensors import Tensors
        >>> weight = torch.tensor([[[1.0, 2.0]]])
        >>> call = OperatorCall(Tensors(), "conv", {"weight": weight, "bias": None}, ())
        >>> folded(call, factor=torch.tensor([3.0]), summand=torch.tensor([0.5])).arguments
        {'weight': tensor([[[3., 6.]]]), 'bias': tensor([0.5000])}
    """
    weight, bias = call["weight"], call.get("bias")
    own = {
        "weight": weight * factor.reshape(-1, *[1] * (weight.dim() - 1)),
        "bias": summand if bias is None else bias * factor + summand,
    }
    return replace(call, arguments={**call.arguments, **own})
