"""Operations that are written as soon as it is known where their results are rounded to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from lq.export.formats.litert.call import Bounds, OperatorCall
from lq.export.formats.litert.file import LiteRTGrid
from lq.export.formats.litert.operators import Operator
from lq.export.formats.litert.operators.elementwise import clamp, clamped
from lq.export.formats.litert.tensors import Value

_OF_LAYERS = ("weight", "bias")
_ANY = Bounds()


@dataclass(frozen=True)
class Pending:
    """An operation that waits for the quantization, or the activation, behind it.

    Args:
        node: of the program.
        bounds: of the activations behind it.
        affine: factor and summand of a BatchNorm behind it.
    """

    node: fx.Node
    bounds: Bounds = _ANY
    affine: tuple[Tensor, Tensor] | None = None


def write_on_integers(known: Operator, call: OperatorCall, bounds: Bounds, grid: LiteRTGrid) -> Value:
    """An int8 operator with its result on a grid, within what the activations let pass."""
    if known.fuses and bounds.activation:
        return _built(known, replace(call, grid=grid, bounds=bounds))
    call = replace(call, grid=grid)
    return clamped(call, _built(known, call), bounds, grid)


def write_in_float(known: Operator, call: OperatorCall, bounds: Bounds) -> Value:
    """A float operator, and the activations behind it."""
    if known.fuses and bounds.activation:
        return _built(known, replace(call, bounds=bounds))
    made = _built(known, call)
    if bounds == _ANY:
        return made
    limits = {"self": made, "min": bounds.low, "max": bounds.high}
    return clamp(replace(call, arguments=limits, name=f"{call.name}/clamp"))


def has_integers(call: OperatorCall) -> bool:
    """Whether all tensors of a call are int8, and its constants the weight of a layer or a single number."""
    if isinstance(call.get("weight"), Tensor):
        return False
    for name, argument in call.arguments.items():
        for leaf in _leaves(argument):
            if isinstance(leaf, Value) and call.net.grid(leaf) is None:
                return False
            if isinstance(leaf, Tensor) and name not in _OF_LAYERS and leaf.numel() > 1:
                return False
    return True


def _built(known: Operator, call: OperatorCall) -> Value:
    made = known.build(call)
    assert isinstance(made, Value)
    return made


def _leaves(argument: Any) -> list[Any]:
    return [leaf for part in argument for leaf in _leaves(part)] if isinstance(argument, list) else [argument]
