"""Parts of tensors, and tensors put together, on integers as in float."""

from __future__ import annotations

from typing import Any

from lq.export.formats.litert.call import OperatorCall, UnsupportedError
from lq.export.formats.litert.file import Shape, Size
from lq.export.formats.litert.tensors import FixedBatchError, Tensors, Value


def part(net: Tensors, value: Value, dimension: int, start: int, size: int, name: str) -> Value:
    """Some of the elements along a dimension.

    Example:
        >>> from lq.export.formats.litert.listing import listing
        >>> net = Tensors()
        >>> image = Value(net.new("image", [Size(1), Size(5), Size(6), Size(4)]), order=(0, 2, 3, 1))
        >>> made = part(net, image, dimension=1, start=2, size=2, name="channels")
        >>> net.lengths(made)
        (1, 2, 5, 6)
        >>> print(listing(net.file))
        channels: float32 [1, 5, 6, 2] = SLICE(image, [0, 0, 0, 2], [-1, -1, -1, 2])
    """
    value = net.settled(value)
    axis, source = value.order.index(dimension), net.of(value)
    if source.shape[axis].changes:
        raise FixedBatchError(f"{name} takes a part of the batch")
    if (start, size) == (0, source.shape[axis].length):
        return value
    begins, sizes = [0] * len(value.order), [-1] * len(value.order)
    begins[axis], sizes[axis] = start, size
    lying = list(source.shape)
    lying[axis] = Size(size)
    target = net.new(name, lying, source.grid, source.dtype)
    net.file.operator("SLICE", [value.tensor, net.integers(begins), net.integers(sizes)], [target], "SliceOptions")
    return Value(target, value.order)


def slice_of(call: OperatorCall) -> Value:
    """A slice along a dimension.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: (x[:, -2:], x[:, ::2]), x=torch.zeros(3, 5)))
        slice_1: float32 [3, 2] = SLICE(x, [0, 3], [-1, 2])
        slice_2: float32 [3, 3] = STRIDED_SLICE(x, [0, 0], [0, 5], [1, 2], beginMask=1, endMask=1)
    """
    x, shape = call["self"], call.net.shape(call["self"])
    dimension = call["dim"] % len(shape)
    if call["step"] != 1:
        return _strided(call, dimension)
    if shape == call.shape:
        return x  # type: ignore[no-any-return]
    start, count = call["start"] or 0, shape[dimension].length
    start = min(max(start + count if start < 0 else start, 0), count)
    return part(call.net, x, dimension, start, call.shape[dimension].length, call.name)


def _strided(call: OperatorCall, dimension: int) -> Value:
    x = call["self"]
    x = call.net.settled(x)
    axis, source = x.order.index(dimension), call.net.of(x)
    if source.shape[axis].changes:
        raise FixedBatchError(f"{call.name} takes a part of the batch")
    start, end = call["start"] or 0, call["end"]
    size = source.shape[axis].length
    begins, ends, strides = ([n] * len(x.order) for n in (0, 0, 1))
    begins[axis], ends[axis], strides[axis] = start, size if end is None or end > size else end, call["step"]
    others = sum(1 << i for i in range(len(x.order)) if i != axis)
    inputs = [x.tensor, *(call.net.integers(values) for values in (begins, ends, strides))]
    own = call.on(source.grid)
    return own.write_in("STRIDED_SLICE", inputs, x.order, "StridedSliceOptions", beginMask=others, endMask=others)


def select(call: OperatorCall) -> Value:
    """One element along a dimension, which goes.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x[:, -1], x=torch.zeros(3, 5)))
        select: float32 [3, 1] = SLICE(x, [0, 4], [-1, 1])
        select/reshape: float32 [3] = RESHAPE(select, [3])
    """
    x, shape = call["self"], call.net.shape(call["self"])
    dimension = call["dim"] % len(shape)
    index = call["index"] % shape[dimension].length
    return call.net.reshape(part(call.net, x, dimension, index, 1, call.name), call.shape)


def narrow(call: OperatorCall) -> Value:
    """A run of elements along a dimension.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x.narrow(1, 1, 2), x=torch.zeros(3, 5)))
        narrow: float32 [3, 2] = SLICE(x, [0, 1], [-1, 2])
    """
    dimension, start = call["dim"] % len(call.shape), call["start"]
    if not isinstance(start, int):
        raise UnsupportedError(f"LiteRT has no operator for {call.name}, whose start is computed")
    size = call.net.shape(call["self"])[dimension].length
    return part(call.net, call["self"], dimension, start + size if start < 0 else start, call["length"], call.name)


def split(call: OperatorCall) -> list[Value]:
    """Parts along a dimension.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x.split([1, 4], 1), x=torch.zeros(3, 5)))
        split_with_sizes/0: float32 [3, 1] = SLICE(x, [0, 0], [-1, 1])
        split_with_sizes/1: float32 [3, 4] = SLICE(x, [0, 1], [-1, 4])
    """
    shape = call.net.shape(call["self"])
    dimension = call.get("dim", 0) % len(shape)
    found, start = [], 0
    for index, size in enumerate(_parts(call, shape[dimension].length)):
        found.append(part(call.net, call["self"], dimension, start, size, f"{call.name}/{index}"))
        start += size
    return found


def _parts(call: OperatorCall, whole: int) -> list[int]:
    given: Any = call.get("split_size", call.get("split_sizes"))
    if isinstance(given, list):
        return given
    size = given if given is not None else -(-whole // call["chunks"])
    return [min(size, whole - start) for start in range(0, whole, size)]


def unbind(call: OperatorCall) -> list[Value]:
    """All elements along a dimension, one by one.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x.unbind(1), x=torch.zeros(3, 2)))
        unbind/0: float32 [3, 1] = SLICE(x, [0, 0], [-1, 1])
        unbind/0/reshape: float32 [3] = RESHAPE(unbind/0, [3])
        unbind/1: float32 [3, 1] = SLICE(x, [0, 1], [-1, 1])
        unbind/1/reshape: float32 [3] = RESHAPE(unbind/1, [3])
    """
    shape = call.net.shape(call["self"])
    dimension = call.get("dim", 0) % len(shape)
    rest: Shape = (*shape[:dimension], *shape[dimension + 1 :])
    parts = (
        part(call.net, call["self"], dimension, index, 1, f"{call.name}/{index}")
        for index in range(shape[dimension].length)
    )
    return [call.net.reshape(one, rest) for one in parts]


def cat(call: OperatorCall) -> Value:
    """Tensors behind each other, on the grid of the result if it has one, and as floats if they have several types.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x, y: torch.cat([x, y], 1), x=torch.zeros(1, 3, 8, 8), y=torch.zeros(1, 2, 8, 8)))
        cat: float32 [1, 8, 8, 5] = CONCATENATION(x, y, axis=3)
    """
    values = [call.taken(tensor) for tensor in call["tensors"]]
    if call.grid is not None:
        values = [call.net.on_grid(v, call.grid, f"{call.name}/{i}") for i, v in enumerate(values)]
    elif len({call.net.of(value).dtype for value in values}) > 1:
        values = [call.net.cast(value, "float32") for value in values]
    lying = (v.order for v in values if v.shape is None and call.net.of(v).content is None)
    order = next(lying, tuple(range(len(call.shape))))
    axis = order.index(call.get("dim", 0) % len(call.shape))
    tensors = [call.net.ordered(value, order).tensor for value in values]
    return call.write_in("CONCATENATION", tensors, order, "ConcatenationOptions", axis=axis)


def roll(call: OperatorCall) -> Value:
    """Elements that leave at one end come back at the other.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x.roll(1, 1), x=torch.zeros(3, 4)))
        roll/part: float32 [3, 1] = SLICE(x, [0, 3], [-1, 1])
        roll/part_2: float32 [3, 3] = SLICE(x, [0, 0], [-1, 3])
        roll: float32 [3, 4] = CONCATENATION(roll/part, roll/part_2, axis=1)
    """
    x = call["self"]
    shape = call.net.shape(x)
    if not call["dims"]:
        raise UnsupportedError(f"{call.name} rolls over all dimensions at once")
    for shift, dim in zip(call["shifts"], call["dims"], strict=True):
        dimension = dim % len(shape)
        size = shape[dimension].length
        cut = -shift % size
        if cut:
            halves = [(cut, size - cut), (0, cut)]
            parts = [part(call.net, x, dimension, *half, f"{call.name}/part") for half in halves]
            axis = parts[0].order.index(dimension)
            made = call.on(call.net.grid(x))
            tensors = [one.tensor for one in parts]
            x = made.write_in("CONCATENATION", tensors, parts[0].order, "ConcatenationOptions", axis=axis)
    return x  # type: ignore[no-any-return]
