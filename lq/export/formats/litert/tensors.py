"""Tensors of the network and what moves them: layouts, grids and shapes, with as few operators as can be.

LiteRT's convolutions want channels last, torch's have them second. So a :class:`Value` knows in which order its file
tensor holds the dimensions, and nothing is moved until an operator asks for another order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lq.export.formats.litert import orders
from lq.export.formats.litert.file import Array, File, FileTensor, LiteRTGrid, Shape, Size
from lq.export.formats.litert.orders import CHANNELS_LAST


class FixedBatchError(ValueError):
    """What an operator needs cannot be written for a batch of any size.

    Example:
        >>> net = Tensors()
        >>> x = Value(net.new("x", [Size(1, changes=True), Size(3)]), order=(0, 1))
        >>> net.reshape_axes(x.tensor, (Size(1, changes=True), Size(3, changes=True)))
        Traceback (most recent call last):
        ...
        lq.export.formats.litert.tensors.FixedBatchError: x has more than one dimension that changes with the batch
    """


@dataclass(frozen=True)
class Value:
    """A tensor of the network.

    Args:
        tensor: the file tensor that holds it.
        order: which dimension each axis of that tensor is.
        shape: that it has once it is reshaped, which waits for who needs it; ``None`` if there is nothing to do.

    Example:
        >>> net = Tensors()
        >>> image = Value(net.new("image", [Size(1), Size(4), Size(5), Size(3)]), order=CHANNELS_LAST[4])
        >>> net.lengths(image)
        (1, 3, 4, 5)
        >>> flat = net.reshape(image, (Size(1), Size(60)))
        >>> flat.order, flat.shape, net.file.operators
        ((0, 2, 3, 1), (Size(length=1, changes=False), Size(length=60, changes=False)), [])
    """

    tensor: int
    order: tuple[int, ...]
    shape: Shape | None = None


class Tensors:
    """The tensors of a file, and the operators that move them.

    Example:
        >>> from lq.export.formats.litert.listing import listing
        >>> net = Tensors()
        >>> image = Value(net.new("image", [Size(1), Size(4), Size(5), Size(3)]), order=CHANNELS_LAST[4])
        >>> tokens = net.permute(net.reshape(image, (Size(1), Size(3), Size(20))), (0, 2, 1))
        >>> net.plain(tokens).order
        (0, 1, 2)
        >>> print(listing(net.file))
        image/reshape: float32 [1, 20, 3] = RESHAPE(image, [1, 20, 3])
    """

    def __init__(self) -> None:
        self.file = File()
        self._moved: dict[tuple[Value, object], Value] = {}
        self._constants: dict[tuple[bytes, str, tuple[int, ...], LiteRTGrid | None], int] = {}

    # ---- what they are ------------------------------------------------------------------------------------------

    def of(self, value: Value) -> FileTensor:
        """The file tensor of a value."""
        return self.file.tensors[value.tensor]

    def grid(self, value: Value) -> LiteRTGrid | None:
        """Where the integers of a value lie; ``None`` for float."""
        return self.of(value).grid

    def shape(self, value: Value) -> Shape:
        """The sizes of a value in the order of its dimensions."""
        return value.shape or orders.in_place(self.of(value).shape, value.order)

    def lengths(self, value: Value) -> tuple[int, ...]:
        """The same for a batch of one."""
        return tuple(size.length for size in self.shape(value))

    # ---- new ones -----------------------------------------------------------------------------------------------

    def new(self, name: str, shape: Sequence[Size], grid: LiteRTGrid | None = None, dtype: str = "float32") -> int:
        """A file tensor that an operator is going to write."""
        return self.file.tensor(FileTensor(name, tuple(shape), dtype if grid is None else "int8", grid))

    def like(self, value: Value, name: str, grid: LiteRTGrid | None = None) -> Value:
        """A value of the same shape and order, on a grid of its own or in float."""
        return replace(value, tensor=self.new(name, self.of(value).shape, grid))

    def constant(self, content: Array, name: str, grid: LiteRTGrid | None = None) -> int:
        """A file tensor with values, floats as float32; what is needed again, as by a layer called twice, is one."""
        if np.issubdtype(content.dtype, np.floating):
            content = content.astype(np.float32, copy=False)
        key = (hashlib.sha256(content.tobytes()).digest(), content.dtype.name, content.shape, grid)
        if key not in self._constants:
            self._constants[key] = self.file.constant(name, content, grid)
        return self._constants[key]

    def integers(self, values: Sequence[int | None], name: str = "sizes") -> int:
        """A constant of int32, as operators take shapes and axes; ``None`` is a size that is computed in each call."""
        if None in values:
            raise FixedBatchError(f"{name} depend on the size of the batch")
        return self.constant(np.array(values, np.int32), name)

    # ---- moving them --------------------------------------------------------------------------------------------

    def plain(self, value: Value) -> Value:
        """In torch's own order."""
        return self.ordered(value, tuple(range(len(self.shape(value)))))

    def channels_last(self, value: Value) -> Value:
        """With the second dimension last."""
        return self.ordered(value, CHANNELS_LAST[len(self.shape(value))])

    def ordered(self, value: Value, order: tuple[int, ...]) -> Value:
        """With the axes of the file tensor in an order."""
        value = self._reshaped(value, order)
        if value.order == order:
            return value
        key = (value, order)
        if key not in self._moved:
            self._moved[key] = self._transposed(value, order)
        return self._moved[key]

    def settled(self, value: Value) -> Value:
        """The value with nothing left to do, as near to how it lies as can be."""
        if value.shape is None:
            return value
        groups = orders.matching_groups(self.shape(replace(value, shape=None)), value.shape)
        return self.plain(value) if groups is None else self.ordered(value, orders.nearest_order(groups, value.order))

    def _reshaped(self, value: Value, order: tuple[int, ...]) -> Value:
        """The value with the reshaping done that it waits for, in an order if it can come out like that."""
        if value.shape is None:
            return value
        if (value, ("reshaped", order)) not in self._moved:
            waiting, plain = replace(value, shape=None), tuple(range(len(value.shape)))
            groups = orders.matching_groups(self.shape(waiting), value.shape)
            source = None if groups is None else orders.order_before(groups, order, value.shape)
            if source is None:
                source, order = tuple(range(len(value.order))), plain
            lying = tuple(value.shape[dimension] for dimension in order)
            done = self.reshape_axes(self.ordered(waiting, source).tensor, lying)
            self._moved[value, ("reshaped", order)] = Value(done, order)
        return self._moved[value, ("reshaped", order)]

    def _transposed(self, value: Value, order: tuple[int, ...]) -> Value:
        source = self.of(value)
        axes = [value.order.index(dimension) for dimension in order]
        shape = tuple(source.shape[axis] for axis in axes)
        if source.content is not None:
            content = source.content.transpose(axes)
            grid = source.grid and replace(source.grid, axis=axes.index(source.grid.axis))
            return Value(self.file.constant(source.name, content, grid), order)
        moving = [axis for axis in axes if source.shape[axis] != Size(1)]
        if moving == sorted(moving):  # only dimensions of one element change places
            return Value(self.reshape_axes(value.tensor, shape), order)
        target = self.new(f"{source.name}/transpose", shape, source.grid, source.dtype)
        permutation = self.integers(axes, "permutation")
        self.file.operator("TRANSPOSE", [value.tensor, permutation], [target], "TransposeOptions")
        return Value(target, order)

    def reshape_axes(self, tensor: int, shape: Shape) -> int:
        """A file tensor with the same content in another shape."""
        source = self.file.tensors[tensor]
        if source.shape == shape:
            return tensor
        if source.content is not None:
            return self.file.constant(source.name, source.content.reshape([s.length for s in shape]), source.grid)
        if sum(size.changes for size in shape) > 1:
            raise FixedBatchError(f"{source.name} has more than one dimension that changes with the batch")
        sizes = [-1 if size.changes else size.length for size in shape]
        target = self.new(f"{source.name}/reshape", shape, source.grid, source.dtype)
        self.file.operator(
            "RESHAPE", [tensor, self.integers(sizes, "shape")], [target], "ReshapeOptions", newShape=sizes
        )
        return target

    def reshape(self, value: Value, shape: Shape) -> Value:
        """In another shape. What lies in another order waits: who comes next may take it as it lies."""
        if self.shape(value) == shape:
            return value
        value = self.settled(value)
        order = orders.order_through(self.of(value).shape, value.order, shape)
        if order is not None:
            lying = tuple(shape[dimension] for dimension in order)
            return Value(self.reshape_axes(value.tensor, lying), order)
        return replace(value, shape=shape)

    def permute(self, value: Value, dimensions: Sequence[int]) -> Value:
        """With its dimensions renamed, which moves nothing."""
        value = self.settled(value)
        new_name = {old: new for new, old in enumerate(dimensions)}
        return replace(value, order=tuple(new_name[dimension] for dimension in value.order))

    # ---- between grids and float --------------------------------------------------------------------------------

    def real(self, value: Value) -> Value:
        """In float."""
        if self.grid(value) is None:
            return value
        if (value, "real") not in self._moved:
            made = self.like(value, f"{self.of(value).name}/dequantize")
            self.file.operator("DEQUANTIZE", [value.tensor], [made.tensor], "DequantizeOptions")
            self._moved[value, "real"] = made
        return self._moved[value, "real"]

    def cast(self, value: Value, dtype: str) -> Value:
        """In another type; what lies on a grid is a float."""
        if dtype == "float32" and (self.grid(value) is not None or self.of(value).dtype == dtype):
            return value
        value = self.settled(self.real(value))
        source = self.of(value)
        if source.dtype == dtype:
            return value
        if (value, dtype) not in self._moved:
            made = self.new(f"{source.name}/cast", source.shape, dtype=dtype)
            self.file.operator("CAST", [value.tensor], [made], "CastOptions")
            self._moved[value, dtype] = replace(value, tensor=made)
        return self._moved[value, dtype]

    def on_grid(self, value: Value, grid: LiteRTGrid, name: str) -> Value:
        """On a grid, from float or from another one."""
        if self.grid(value) == grid:
            return value
        if (value, grid) not in self._moved:
            made = self.like(value, name, grid)
            if self.grid(value) is None:
                self.file.operator("QUANTIZE", [value.tensor], [made.tensor], "QuantizeOptions")
            else:  # XNNPACK's QUANTIZE knows the ratio of two grids to 8 bits only
                one = self.constant(np.ones([1] * len(made.order), np.int8), "one", LiteRTGrid.of(1.0, 0))
                self.file.operator("MUL", [value.tensor, one], [made.tensor], "MulOptions")
            self._moved[value, grid] = made
        return self._moved[value, grid]
