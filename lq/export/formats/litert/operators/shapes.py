"""What moves elements and computes nothing, on integers as in float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lq.export.formats.litert.call import OperatorCall, UnsupportedError, array
from lq.export.formats.litert.file import Shape, Size
from lq.export.formats.litert.tensors import FixedBatchError, Tensors, Value


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


def roll(call: OperatorCall) -> Value:
    """Elements that leave at one end come back at the other.

    Example:
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


def embedding(call: OperatorCall) -> Value:
    """Rows of a table.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.Embedding(9, 4), ids=torch.tensor([[0, 8]])))
        layer: float32 [1, 2, 4] = GATHER(layer/constant: float32 [9, 4], ids)
    """
    table, indices = call.taken(call["weight"]), _places(call, call["indices"])
    return call.write_in("GATHER", [table.tensor, indices.tensor], tuple(range(len(call.shape))), "GatherOptions")


def gather(call: OperatorCall) -> Value:
    """Elements of the last dimension at places that are computed, and differ from row to row.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> ids = torch.tensor([[0, 4, 4], [1, 2, 3]])
        >>> print(listing_of(lambda x, ids: x.gather(1, ids), x=torch.zeros(2, 5), ids=ids))
        gather: float32 [2, 3] = GATHER(x, ids, axis=1, batchDims=1)
    """
    x, places = call.net.plain(call.taken(call["self"])), _places(call, call["index"])
    shape, last = call.net.shape(x), len(call.shape) - 1
    if call["dim"] % (last + 1) != last:
        raise UnsupportedError(f"LiteRT has no operator for {call.name}, whose places are not in the last dimension")
    if shape[:-1] != call.shape[:-1]:
        raise UnsupportedError(f"LiteRT has no operator for {call.name}, which leaves rows of its input out")
    source = call.net.of(x)
    target = call.net.new(call.name, call.shape, source.grid, source.dtype)
    call.net.file.operator("GATHER", [x.tensor, places.tensor], [target], "GatherOptions", axis=last, batchDims=last)
    return Value(target, tuple(range(last + 1)))


def _places(call: OperatorCall, given: Any) -> Value:
    """Computed integers, which may be floats here."""
    places = call.net.plain(call.taken(given))
    return call.net.cast(places, "int32") if call.net.of(places).dtype == "float32" else places


def index(call: OperatorCall) -> Value:
    """Elements at constant places: of one dimension, or of the first ones together.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: x[:, [0, -1]], x=torch.zeros(2, 5)))
        index: float32 [2, 2] = GATHER(x, [0, 4], axis=1)
    """
    known = {dimension: given for dimension, given in enumerate(call["indices"]) if given is not None}
    if not all(isinstance(given, Tensor) and given.dtype != torch.bool for given in known.values()):
        raise UnsupportedError(f"LiteRT has no operator for {call.name}, whose places are computed")
    if len(known) > 1 and list(known) != list(range(len(known))):
        raise UnsupportedError(f"LiteRT has no operator for {call.name}, whose places are not in the first dimensions")
    shape = call.net.shape(call["self"])
    if any(shape[dimension].changes for dimension in known):
        raise FixedBatchError(f"{call.name} takes a part of the batch")
    places = {dimension: given % shape[dimension].length for dimension, given in known.items()}
    return _along(call, *next(iter(places.items()))) if len(places) == 1 else _together(call, list(places.values()))


def _along(call: OperatorCall, dimension: int, places: Tensor) -> Value:
    x = call.net.settled(call["self"]) if places.dim() == 1 else call.net.plain(call["self"])
    order = x.order if places.dim() == 1 else tuple(range(len(call.shape)))
    return _gathered(call, "GATHER", x, places, order, "GatherOptions", axis=x.order.index(dimension))


def _together(call: OperatorCall, places: Sequence[Tensor]) -> Value:
    common = torch.broadcast_shapes(*(place.shape for place in places))  # type: ignore[no-untyped-call]
    joined = torch.stack([place.expand(common) for place in places], -1)
    x, order = call.net.plain(call["self"]), tuple(range(len(call.shape)))
    return _gathered(call, "GATHER_ND", x, joined, order, "GatherNdOptions")


def _gathered(
    call: OperatorCall, kind: str, x: Value, places: Tensor, order: tuple[int, ...], options: str, **settings: int
) -> Value:
    source = call.net.of(x)
    target = call.net.new(call.name, [call.shape[dimension] for dimension in order], source.grid, source.dtype)
    inputs = [x.tensor, call.net.constant(array(places.int()), f"{call.name}/places")]
    call.net.file.operator(kind, inputs, [target], options, **settings)
    return Value(target, order)
