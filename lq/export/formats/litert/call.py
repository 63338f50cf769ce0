"""One operation of the network, as the builders of operators get it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lq.export.formats.litert.file import Array, LiteRTGrid, Shape
from lq.export.formats.litert.tensors import FixedBatchError, Tensors, Value


class UnsupportedError(ValueError):
    """LiteRT has no operator for this.

    Example:
        >>> from lq.export.formats.litert.listing import listing_of
        >>> listing_of(torch.sign, x=torch.zeros(2))
        Traceback (most recent call last):
        ...
        lq.export.formats.litert.call.UnsupportedError: LiteRT has no operator for sign (sign)
    """


@dataclass(frozen=True)
class Weight:
    """The int8 weight of a layer.

    Args:
        integers: int8, of torch's shape.
        scales: float32, one or one for each channel.
        axis: that of the channels.
        name: of the layer.

    Example:
        >>> integers = torch.tensor([[1, -2], [127, 0]], dtype=torch.int8)
        >>> Weight(integers, scales=torch.tensor([0.5, 0.01]), axis=0, name="fc").real()
        tensor([[ 0.5000, -1.0000],
                [ 1.2700,  0.0000]])
    """

    integers: Tensor
    scales: Tensor
    axis: int
    name: str

    def real(self) -> Tensor:
        """In float."""
        sizes = [1] * self.integers.dim()
        sizes[self.axis] = -1
        return self.integers.float() * (self.scales.reshape(sizes) if self.scales.numel() > 1 else self.scales)


@dataclass(frozen=True)
class Bounds:
    """What an activation lets pass.

    Example:
        >>> both = Bounds(low=0.0).within(Bounds(high=6.0))
        >>> both.activation, both.width, Bounds(0.0, 1.0).activation
        ('RELU6', 6.0, '')
    """

    low: float = -math.inf
    high: float = math.inf

    def within(self, other: Bounds) -> Bounds:
        """Both, one behind the other."""
        return Bounds(min(max(self.low, other.low), other.high), max(min(self.high, other.high), other.low))

    @property
    def width(self) -> float:
        """The range of what is let pass."""
        return self.high - self.low

    @property
    def activation(self) -> str:
        """Its name in the schema's ``ActivationFunctionType``, "" if it has none."""
        return _ACTIVATIONS.get((self.low, self.high), "")


_ACTIVATIONS = {
    (-math.inf, math.inf): "NONE",
    (0.0, math.inf): "RELU",
    (0.0, 6.0): "RELU6",
    (-1.0, 1.0): "RELU_N1_TO_1",
}


@dataclass(frozen=True)
class OperatorCall:
    """What is to be written: an operation, its arguments, and where its result goes.

    Args:
        net: the tensors, and the file.
        name: of the result.
        arguments: by name; tensors as :class:`Value`, constants as tensors, int8 weights as :class:`Weight`.
        shape: of the result.
        grid: that the result is rounded to; ``None`` for float.
        bounds: of an activation behind it, for operators that compute one themselves.

    Example:
        >>> from lq.export.formats.litert.file import Size
        >>> from lq.export.formats.litert.listing import listing
        >>> net, shape = Tensors(), (Size(2), Size(3))
        >>> x = Value(net.new("x", shape), order=(0, 1))
        >>> call = OperatorCall(net, "sum", {"self": x, "other": 1.5}, shape, bounds=Bounds(low=0.0))
        >>> inputs = [call.value("self").tensor, call.value("other").tensor]
        >>> made = call.write_in("ADD", inputs, x.order, "AddOptions", fusedActivationFunction=call.activation)
        >>> print(listing(net.file))
        sum: float32 [2, 3] = ADD(x, 1.5, RELU)
    """

    net: Tensors
    name: str
    arguments: Mapping[str, Any]
    shape: Shape
    grid: LiteRTGrid | None = None
    bounds: Bounds = Bounds()

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument that not every overload has."""
        return self.arguments.get(name, default)

    def value(self, name: str) -> Value:
        """A tensor, in float or on its grid, as the result is; integers as floats, which have them up to 2^24."""
        taken = self.taken(self.arguments[name])
        return self.net.cast(taken, "float32") if self.grid is None else taken

    def taken(self, argument: Any) -> Value:
        """The same for a part of an argument, or a number."""
        if isinstance(argument, Value):
            return self.net.real(argument) if self.grid is None else argument
        if isinstance(argument, Weight):
            argument = argument.real()
        if isinstance(argument, (int, float)):
            argument = torch.tensor(float(argument))
        if argument is None:  # a size; numbers are constants
            raise FixedBatchError(f"{self.name} computes with the size of the batch")
        assert isinstance(argument, Tensor)
        order = tuple(range(argument.dim()))
        if self.grid is None or not argument.is_floating_point():
            return Value(self.net.constant(array(argument), f"{self.name}/constant"), order)
        return Value(self._on_own_grid(argument), order)

    def _on_own_grid(self, constant: Tensor) -> int:
        """A number as the largest integer of a grid of its own."""
        real = float(constant)
        grid = LiteRTGrid.of(abs(real) / 127 or 1.0, 0)
        integers = np.full(tuple(constant.shape), grid.integer(real), np.int8)
        return self.net.constant(integers, f"{self.name}/constant", grid)

    def on(self, grid: LiteRTGrid | None, name: str = "") -> OperatorCall:
        """The same operation with a result on another grid."""
        return replace(self, grid=grid, name=f"{self.name}/{name}" if name else self.name)

    @property
    def activation(self) -> int:
        """Code of the activation behind it."""
        from ai_edge_litert.schema_py_generated import ActivationFunctionType

        return int(getattr(ActivationFunctionType, self.bounds.activation or "NONE"))

    def write(self, kind: str, inputs: list[int], like: Value, options: str = "", **settings: Any) -> Value:
        """An operator whose result has shape and order of a value."""
        made = self.net.like(like, self.name, self.grid)
        self.net.file.operator(kind, inputs, [made.tensor], options, **settings)
        return made

    def write_in(
        self, kind: str, inputs: list[int], order: tuple[int, ...], options: str = "", **settings: Any
    ) -> Value:
        """An operator whose result has the shape of the call and lies in an order."""
        target = self.net.new(self.name, [self.shape[dimension] for dimension in order], self.grid)
        self.net.file.operator(kind, inputs, [target], options, **settings)
        return Value(target, order)


Builder: TypeAlias = Callable[[OperatorCall], Any]


def array(tensor: Tensor) -> Array:
    """A constant as numpy has it, bfloat16 as float32.

    Example:
        >>> array(torch.ones(2, requires_grad=True))
        array([1., 1.], dtype=float32)
    """
    known = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    found: Array = known.detach().cpu().contiguous().numpy()
    return found
