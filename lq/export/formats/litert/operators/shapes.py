"""Other shapes and types of the same elements, on integers as in float."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lq.export.formats.litert.call import OperatorCall
from lq.export.formats.litert.file import Size
from lq.export.formats.litert.tensors import FixedBatchError, Value


def reshape(call: OperatorCall) -> Value:
    """Any operation that says a new shape for the same elements.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x.unflatten(1, (2, 3)), x=torch.zeros(4, 6)))
        x/reshape: float32 [4, 2, 3] = RESHAPE(x, [4, 2, 3])
    """
    return call.net.reshape(call["self"], call.shape)


def identity(call: OperatorCall) -> Value:
    """Nothing.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> listing_of(torch.nn.Dropout(), x=torch.zeros(3))
        ''
    """
    found = next(iter(call.arguments.values()))
    assert isinstance(found, Value)
    return found


def cast(call: OperatorCall) -> Value:
    """Another type, where there is one: the same for all floating types.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: (x.double(), x.int()), x=torch.zeros(3)))
        x/cast: int32 [3] = CAST(x)
    """
    x, dtype = call["self"], call.get("dtype")
    assert isinstance(x, Value)
    if dtype is None:
        return x
    return call.net.cast(x, "float32" if dtype.is_floating_point else str(dtype).removeprefix("torch."))


def permute(call: OperatorCall) -> Value:
    """Dimensions in another order.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x.permute(2, 0, 1) + 1, x=torch.zeros(2, 3, 4)))
        add: float32 [2, 3, 4] = ADD(x, 1)
        add/transpose: float32 [4, 2, 3] = TRANSPOSE(add, [2, 0, 1])
    """
    rank = len(call.shape)
    return call.net.permute(call["self"], [dimension % rank for dimension in call["dims"]])


def transpose(call: OperatorCall) -> Value:
    """Two dimensions swapped.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x.transpose(1, 2).flatten(1), x=torch.zeros(2, 3, 4)))
        x/transpose: float32 [2, 4, 3] = TRANSPOSE(x, [0, 2, 1])
        x/transpose/reshape: float32 [2, 12] = RESHAPE(x/transpose, [2, 12])
    """
    rank = len(call.shape)
    names = ("dim0", "dim1") if call.get("dim0") is not None else ("axis0", "axis1")
    first, second = (call[name] % rank for name in names)
    dimensions = list(range(rank))
    dimensions[first], dimensions[second] = second, first
    return call.net.permute(call["self"], dimensions)


def matrix_transpose(call: OperatorCall) -> Value:
    """A matrix turned over.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x.t() @ x, x=torch.zeros(2, 3)))
        matmul: float32 [3, 3] = BATCH_MATMUL(x, x, adjX=True)
        >>> print(listing_of(torch.t, x=torch.zeros(2, 3)))
        x/transpose: float32 [3, 2] = TRANSPOSE(x, [1, 0])
    """
    return call.net.permute(call["self"], list(range(len(call.shape)))[::-1])


def movedim(call: OperatorCall) -> Value:
    """Some dimensions moved to other places.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x.movedim(0, -1).flatten(), x=torch.zeros(2, 3, 4)))
        x/transpose: float32 [3, 4, 2] = TRANSPOSE(x, [1, 2, 0])
        x/transpose/reshape: float32 [24] = RESHAPE(x/transpose, [24])
    """
    rank = len(call.shape)
    names = [call[name] if isinstance(call[name], list) else [call[name]] for name in ("source", "destination")]
    return call.net.permute(call["self"], _moved(rank, *names))


def _moved(rank: int, source: Sequence[int], destination: Sequence[int]) -> list[int]:
    sizes = torch.empty(list(range(2, 2 + rank)), device="meta")
    return [size - 2 for size in sizes.movedim(list(source), list(destination)).shape]


def expand(call: OperatorCall) -> Value:
    """Copies along dimensions of one element.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x.expand(3, 4), x=torch.zeros(4)))
        x/reshape: float32 [1, 4] = RESHAPE(x, [1, 4])
        expand: float32 [3, 4] = BROADCAST_TO(x/reshape, [3, 4])
    """
    x = call["self"]
    shape = call.net.shape(x)
    x = call.net.reshape(x, (*[Size(1)] * (len(call.shape) - len(shape)), *shape))
    if call.net.shape(x) == call.shape:
        return x
    x = call.net.settled(x)
    lying = [call.shape[dimension] for dimension in x.order]
    if any(size.changes for size in lying):
        raise FixedBatchError(f"{call.name} copies as many times as the batch is large")
    inputs = [x.tensor, call.net.integers([size.length for size in lying])]
    return call.on(call.net.grid(x)).write_in("BROADCAST_TO", inputs, x.order)


def repeat(call: OperatorCall) -> Value:
    """Copies behind each other.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x.repeat(1, 2), x=torch.zeros(3, 4)))
        repeat: float32 [3, 8] = TILE(x, [1, 2])
    """
    x = call["self"]
    shape = call.net.shape(x)
    x = call.net.plain(call.net.reshape(x, (*[Size(1)] * (len(call.shape) - len(shape)), *shape)))
    inputs = [x.tensor, call.net.integers(call["repeats"])]
    return call.on(call.net.grid(x)).write_in("TILE", inputs, x.order)
