"""Arithmetic of two tensors, functions of one, comparisons and choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from lq.export.formats.litert.call import Bounds, Builder, OperatorCall, UnsupportedError
from lq.export.formats.litert.file import Shape, Size
from lq.export.formats.litert.tensors import Value


def binary(kind: str, options: str = "", fused: bool = True) -> Builder:
    """An operator of two tensors, or of a tensor and a number.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x, y: torch.add(x, y, alpha=3), x=torch.zeros(4, 2), y=torch.zeros(2)))
        add/scaled: float32 [2] = MUL(y, 3)
        add/scaled/reshape: float32 [1, 2] = RESHAPE(add/scaled, [1, 2])
        add: float32 [4, 2] = ADD(x, add/scaled/reshape)
    """

    def build(call: OperatorCall) -> Value:
        left, right = (call.value(name) for name in ("self", "other"))
        if has_factor(call):
            scaled = replace(call, name=f"{call.name}/scaled", shape=call.net.shape(right), bounds=Bounds())
            right = joined(scaled, "MUL", right, scaled.taken(float(call["alpha"])), "MulOptions")
        return joined(call, kind, left, right, options, fused)

    return build


def has_factor(call: OperatorCall) -> bool:
    """Whether the second one of two tensors is multiplied by a number first.

    Example:
        >>> from lq.export.formats.litert.tensors import Tensors
        >>> net, one = Tensors(), (Size(1),)
        >>> x = Value(net.new("x", one), order=(0,))
        >>> [has_factor(OperatorCall(net, "sum", {"self": x, "other": x, "alpha": alpha}, one)) for alpha in (1, 3)]
        [False, True]
    """
    return bool(call.get("alpha", 1) != 1)


def divide(call: OperatorCall) -> Value:
    """A quotient, or the whole number below it.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: torch.div(x, 0.5, rounding_mode="floor"), x=torch.zeros(3)))
        div/quotient: float32 [3] = DIV(x, 0.5)
        div: float32 [3] = FLOOR(div/quotient)
    """
    rounding = call.get("rounding_mode")
    if rounding not in (None, "floor"):
        raise UnsupportedError(f"LiteRT has no operator for {call.name}, a division with rounding_mode={rounding!r}")
    build = binary("DIV", "DivOptions")
    if rounding is None:
        made: Value = build(call)
        return made
    quotient = build(call.on(None, "quotient"))
    return call.write("FLOOR", [quotient.tensor], quotient)


def joined(call: OperatorCall, kind: str, left: Value, right: Value, options: str = "", fused: bool = True) -> Value:
    """What an operator makes of two tensors that are broadcast to one shape.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.mul, image=torch.zeros(1, 3, 8, 8), factors=torch.zeros(1, 3, 1, 1)))
        mul: float32 [1, 8, 8, 3] = MUL(image, factors)
    """
    order = _common_order(call, (left, right))
    tensors = [_broadcast(call, value, order) for value in (left, right)]
    settings = {"fusedActivationFunction": call.activation} if fused and options else {}
    return call.write_in(kind, tensors, order, options, **settings)


def _common_order(call: OperatorCall, values: Sequence[Value]) -> tuple[int, ...]:
    """That of the largest of the tensors that have all dimensions."""
    rank = len(call.shape)
    full = [v for v in values if len(call.net.shape(v)) == rank and v.shape is None]
    if not full:
        return tuple(range(rank))
    return max(full, key=lambda v: (call.net.of(v).content is None, math.prod(call.net.lengths(v)))).order


def _broadcast(call: OperatorCall, value: Value, order: tuple[int, ...]) -> int:
    """The tensor of a value in an order, with the leading dimensions that it lacks."""
    shape = call.net.shape(value)
    if not shape:
        return value.tensor
    missing: Shape = (Size(1),) * (len(order) - len(shape))
    return call.net.ordered(call.net.reshape(value, (*missing, *shape)), order).tensor


def unary(kind: str) -> Builder:
    """A function of each element.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.relu, step=0.5, x=torch.zeros(3)))
        relu: 0.5 * int8 [3] = RELU(x)
    """

    def build(call: OperatorCall) -> Value:
        x = call.value("self")
        return call.write(kind, [x.tensor], x)

    return build


def logical(kind: str, names: Sequence[str] = ("self", "other")) -> Builder:
    """An operator of truth values.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x, y: x & ~y, x=torch.ones(3) > 0, y=torch.ones(3) > 0))
        bitwise_not: bool [3] = LOGICAL_NOT(y)
        bitwise_and: bool [3] = LOGICAL_AND(x, bitwise_not)
    """

    def build(call: OperatorCall) -> Value:
        values = [call.taken(call[name]) for name in names]
        if any(call.net.of(value).dtype != "bool" for value in values):
            raise UnsupportedError(f"LiteRT has no operator for {call.name}, which is one of integers")
        return _truth(call, kind, values)

    return build


def comparison(kind: str) -> Builder:
    """An operator that compares two tensors, or a tensor and a number, as floats if they are of two types.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda ids, x: (ids > 2, x > ids), ids=torch.arange(3), x=torch.zeros(3)))
        ids/cast: float32 [3] = CAST(ids)
        gt: bool [3] = GREATER(ids/cast, 2)
        gt_1: bool [3] = GREATER(x, ids/cast)
    """

    def build(call: OperatorCall) -> Value:
        values = [call.taken(call[name]) for name in ("self", "other")]
        if len({call.net.of(value).dtype for value in values}) > 1:
            values = [call.net.cast(value, "float32") for value in values]
        return _truth(call, kind, values)

    return build


def _truth(call: OperatorCall, kind: str, values: Sequence[Value]) -> Value:
    order = _common_order(call, values)
    target = call.net.new(call.name, [call.shape[dimension] for dimension in order], dtype="bool")
    call.net.file.operator(kind, [_broadcast(call, value, order) for value in values], [target])
    return Value(target, order)


def power(call: OperatorCall) -> Value:
    """A power, which is a product if the exponent is 2.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x: (x**2, x**0.5), x=torch.zeros(3)))
        pow_1: float32 [3] = MUL(x, x)
        pow_2: float32 [3] = POW(x, 0.5)
    """
    x, exponent = call.value("self"), call["exponent"]
    if isinstance(exponent, (int, float)) and exponent == 2:
        return joined(call, "MUL", x, x, "MulOptions")
    return joined(call, "POW", x, call.value("exponent"))


def select(call: OperatorCall) -> Value:
    """One of two tensors, element by element; integers as floats, as which they are computed.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x, y: torch.where(x > 0, x, y), x=torch.zeros(3), y=torch.zeros(3)))
        gt: bool [3] = GREATER(x, 0)
        where: float32 [3] = SELECT_V2(gt, x, y)
    """
    condition, *values = (call.taken(call[name]) for name in ("condition", "self", "other"))
    values = [condition, *(value if call.grid else call.net.cast(value, "float32") for value in values)]
    order = _common_order(call, values)
    return call.write_in("SELECT_V2", [_broadcast(call, value, order) for value in values], order)


def masked_fill(call: OperatorCall) -> Value:
    """A number where a mask is set.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(lambda x, mask: x.masked_fill(mask, -1.0), x=torch.zeros(3), mask=torch.zeros(3) > 0))
        masked_fill: float32 [3] = SELECT_V2(mask, -1, x)
    """
    arguments = {"condition": call["mask"], "self": call["value"], "other": call["self"]}
    return select(replace(call, arguments=arguments))
