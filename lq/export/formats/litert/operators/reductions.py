"""Means, sums and maxima over whole dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from lq.export.formats.litert.call import Builder, OperatorCall
from lq.export.formats.litert.tensors import Value


def reduction(kind: str) -> Builder:
    """A mean, sum or maximum over some dimensions, or over all.

    Example:
        >>> import torch
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
        >>> import torch
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
    """A mean, sum or maximum over given dimensions, which stay with one element if they are kept.

    Example:
        >>> from lq.export.formats.litert.file import Size
        >>> from lq.export.formats.litert.listing import listing
        >>> from lq.export.formats.litert.tensors import Tensors
        >>> net = Tensors()
        >>> image = Value(net.new("image", [Size(1), Size(6), Size(6), Size(4)]), order=(0, 2, 3, 1))
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
