"""Functions that LiteRT lacks, in float, of operators that it has."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lq.export.formats.litert.call import OperatorCall
from lq.export.formats.litert.file import Size
from lq.export.formats.litert.operators.elementwise import comparison, joined, select
from lq.export.formats.litert.operators.normalization import batch_norm
from lq.export.formats.litert.operators.reductions import reduced
from lq.export.formats.litert.tensors import Value

_STRAIGHT = 16.0  # from here on the logarithm of a softplus is less than a float32 shows


def elu(call: OperatorCall) -> Value:
    """``scale * (x if x > 0 else alpha * (exp(input_scale * x) - 1))``; LiteRT has it with ones alone.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.ELU(alpha=0.5), x=torch.zeros(3)))
        elu/relu: float32 [3] = RELU(x)
        elu/below: float32 [3] = SUB(x, elu/relu)
        elu/elu: float32 [3] = ELU(elu/below)
        elu/curved: float32 [3] = MUL(elu/elu, 0.5)
        elu: float32 [3] = ADD(elu/relu, elu/curved)
    """
    x = call.value("self")
    alpha, scale, steepness = (float(call.get(name, 1)) for name in ("alpha", "scale", "input_scale"))
    if alpha == scale == steepness == 1:
        return call.write("ELU", [x.tensor], x)
    above = _function(call, "RELU", x)
    below = _product(call, _difference(call, x, above, "below"), steepness, "steep")
    curved = _product(call, _function(call, "ELU", below), scale * alpha, "curved")
    return _sum(call, _product(call, above, scale, "straight"), curved)


def celu(call: OperatorCall) -> Value:
    """``max(x, 0) + min(0, alpha * (exp(x / alpha) - 1))``.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.CELU(alpha=0.5), x=torch.zeros(3)))
        celu/relu: float32 [3] = RELU(x)
        celu/below: float32 [3] = SUB(x, celu/relu)
        celu/steep: float32 [3] = MUL(celu/below, 2)
        celu/elu: float32 [3] = ELU(celu/steep)
        celu/curved: float32 [3] = MUL(celu/elu, 0.5)
        celu: float32 [3] = ADD(celu/relu, celu/curved)
    """
    alpha = float(call.get("alpha") or 1)
    return elu(replace(call, arguments={**call.arguments, "alpha": alpha, "scale": 1.0, "input_scale": 1 / alpha}))


def softplus(call: OperatorCall) -> Value:
    """``log(1 + exp(beta * x)) / beta``, as ``max(x, 0) + log(1 + exp(-abs(x)))``, which does not overflow.

    Torch has ``x`` itself above a threshold, which makes a difference if that is low.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.Softplus(), x=torch.zeros(3)))
        softplus/abs: float32 [3] = ABS(x)
        softplus/neg: float32 [3] = NEG(softplus/abs)
        softplus/exp: float32 [3] = EXP(softplus/neg)
        softplus/one more: float32 [3] = ADD(softplus/exp, 1)
        softplus/log: float32 [3] = LOG(softplus/one more)
        softplus/relu: float32 [3] = RELU(x)
        softplus/softplus: float32 [3] = ADD(softplus/relu, softplus/log)
    """
    x, beta, threshold = call.value("self"), float(call.get("beta") or 1), float(call.get("threshold", 20))
    scaled = _product(call, x, beta, "scaled")
    soft = _product(call, _softplus(call, scaled), 1 / beta)
    if threshold >= _STRAIGHT:
        return soft
    above = replace(call.on(None, "above"), arguments={"self": scaled, "other": threshold})
    chosen = {"condition": comparison("GREATER")(above), "self": x, "other": soft}
    return select(replace(call.on(None, "chosen"), arguments=chosen))


def mish(call: OperatorCall) -> Value:
    """``x * tanh(softplus(x))``.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.Mish(), x=torch.zeros(3)))
        mish/abs: float32 [3] = ABS(x)
        ...
        mish/softplus: float32 [3] = ADD(mish/relu, mish/log)
        mish/tanh: float32 [3] = TANH(mish/softplus)
        mish: float32 [3] = MUL(x, mish/tanh)
    """
    x = call.value("self")
    return joined(call, "MUL", x, _function(call, "TANH", _softplus(call, x)), "MulOptions")


def log_sigmoid(call: OperatorCall) -> Value:
    """``-softplus(-x)``.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.LogSigmoid(), x=torch.zeros(3)))
        log_sigmoid/neg: float32 [3] = NEG(x)
        log_sigmoid/abs: float32 [3] = ABS(log_sigmoid/neg)
        ...
        log_sigmoid/softplus: float32 [3] = ADD(log_sigmoid/relu, log_sigmoid/log)
        log_sigmoid: float32 [3] = NEG(log_sigmoid/softplus)
    """
    negative = _function(call, "NEG", call.value("self"))
    return _function(call, "NEG", _softplus(call, negative), call.name)


def group_norm(call: OperatorCall) -> Value:
    """``(x - mean) / sqrt(variance + eps)`` over the channels of a group and all positions, times weight, plus bias.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.GroupNorm(2, 4, affine=False), x=torch.zeros(3, 4)))
        x/reshape: float32 [3, 2, 2] = RESHAPE(x, [3, 2, 2])
        group_norm/mean: float32 [3, 2, 1] = MEAN(x/reshape, [2], keepDims=True)
        ...
        group_norm/rsqrt: float32 [3, 2, 1] = RSQRT(group_norm/sum)
        group_norm/normalized: float32 [3, 2, 2] = MUL(group_norm/centred, group_norm/rsqrt)
        group_norm/normalized/reshape: float32 [3, 4] = RESHAPE(group_norm/normalized, [3, 4])
    """
    batch, channels, *positions = call.shape
    groups = call["num_groups"]
    apart = (batch, Size(groups), Size(channels.length // groups), *positions)
    grouped = replace(call, shape=apart)
    x = call.net.reshape(call.value("input"), apart)
    normal = _normalized(grouped, x, list(range(2, len(apart))))
    return _affine(call, call.net.reshape(normal, call.shape))


def instance_norm(call: OperatorCall) -> Value:
    """``(x - mean) / sqrt(variance + eps)`` over all positions of a channel, or with the statistics of the training.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.InstanceNorm2d(3), image=torch.zeros(1, 3, 8, 8)))
        instance_norm/mean: float32 [1, 1, 1, 3] = MEAN(image, [1, 2], keepDims=True)
        instance_norm/centred: float32 [1, 8, 8, 3] = SUB(image, instance_norm/mean)
        ...
        instance_norm/rsqrt: float32 [1, 1, 1, 3] = RSQRT(instance_norm/sum)
        instance_norm/normalized: float32 [1, 8, 8, 3] = MUL(instance_norm/centred, instance_norm/rsqrt)
    """
    if not call.get("use_input_stats", True):
        return batch_norm(call)
    return _affine(call, _normalized(call, call.value("input"), list(range(2, len(call.shape)))))


def _normalized(call: OperatorCall, x: Value, dimensions: list[int]) -> Value:
    lying = call.net.settled(x)
    small = replace(call, shape=tuple(Size(1) if d in dimensions else size for d, size in enumerate(call.shape)))
    mean = reduced(small.on(None, "mean"), "MEAN", lying, dimensions, keep=True)
    centred = _difference(call, lying, mean, "centred")
    squares = joined(call.on(None, "squares"), "MUL", centred, centred, "MulOptions")
    variance = reduced(small.on(None, "variance"), "MEAN", squares, dimensions, keep=True)
    steady = joined(small.on(None, "sum"), "ADD", variance, call.taken(float(call["eps"])), "AddOptions")
    return joined(call.on(None, "normalized"), "MUL", centred, _function(small, "RSQRT", steady), "MulOptions")


def _affine(call: OperatorCall, x: Value) -> Value:
    for kind, name, options in (("MUL", "weight", "MulOptions"), ("ADD", "bias", "AddOptions")):
        if call.get(name) is not None:
            sizes = [1] * (len(call.shape) - 2)
            if isinstance(call[name], Tensor):
                given = call.taken(call[name].reshape(-1, *sizes))
            else:  # computed
                given = call.net.reshape(call.value(name), (call.shape[1], *map(Size, sizes)))
            x = joined(call.on(None, name), kind, x, given, options)
    return x


def _softplus(call: OperatorCall, x: Value) -> Value:
    size = _function(call, "NEG", _function(call, "ABS", x))
    rest = _function(call, "LOG", _sum(call, _function(call, "EXP", size), call.taken(1.0), "one more"))
    return _sum(call, _function(call, "RELU", x), rest, "softplus")


def _function(call: OperatorCall, kind: str, x: Value, name: str = "") -> Value:
    return replace(call, grid=None, name=name or f"{call.name}/{kind.lower()}").write(kind, [x.tensor], x)


def _product(call: OperatorCall, x: Value, factor: float, name: str = "") -> Value:
    return x if factor == 1 else joined(call.on(None, name), "MUL", x, call.taken(factor), "MulOptions")


def _sum(call: OperatorCall, left: Value, right: Value, name: str = "") -> Value:
    return joined(call.on(None, name), "ADD", left, right, "AddOptions")


def _difference(call: OperatorCall, left: Value, right: Value, name: str) -> Value:
    return joined(call.on(None, name), "SUB", left, right, "SubOptions")
