"""Operations that are written as soon as it is known where their results are rounded to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from lq.export.formats.litert.call import Bounds, OperatorCall
from lq.export.formats.litert.file import LiteRTGrid
from lq.export.formats.litert.operators import Operator
from lq.export.formats.litert.operators.activations import clamp, clamped
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

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv1d(1, 1, 1), torch.nn.ReLU())
        >>> program = torch.export.export(net, (torch.zeros(1, 1, 2),))
        >>> convolution = next(node for node in program.graph.nodes if node.op == "call_function")
        >>> waiting = Pending(convolution)
        >>> behind = replace(waiting, bounds=waiting.bounds.within(Bounds(low=0.0)))  # the ReLU
        >>> behind.node.name, behind.bounds.activation
        ('conv1d', 'RELU')
    """

    node: fx.Node
    bounds: Bounds = _ANY
    affine: tuple[Tensor, Tensor] | None = None


def write_on_integers(known: Operator, call: OperatorCall, bounds: Bounds, grid: LiteRTGrid) -> Value:
    """An int8 operator with its result on a grid, within what the activations let pass.

    Example:
        >>> from lq.export.formats.litert.file import Size
        >>> from lq.export.formats.litert.listing import listing
        >>> from lq.export.formats.litert.operators import OPERATORS
        >>> from lq.export.formats.litert.tensors import Tensors
        >>> net, grid = Tensors(), LiteRTGrid.of(0.5, 0)
        >>> x = Value(net.new("x", [Size(3)], grid), order=(0,))
        >>> call = OperatorCall(net, "sum", {"self": x, "other": x}, net.shape(x))
        >>> made = write_on_integers(OPERATORS["add"], call, Bounds(low=0.0, high=8.0), grid)
        >>> print(listing(net.file))
        sum: 0.5 * int8 [3] = ADD(x, x)
        sum/maximum: 0.5 * int8 [3] = MAXIMUM(sum, 0)
        sum/minimum: 0.5 * int8 [3] = MINIMUM(sum/maximum, 8)
    """
    if known.fuses and bounds.activation:
        return _built(known, replace(call, grid=grid, bounds=bounds))
    call = replace(call, grid=grid)
    return clamped(call, _built(known, call), bounds, grid)


def write_in_float(known: Operator, call: OperatorCall, bounds: Bounds) -> Value:
    """A float operator, and the activations behind it.

    Example:
        >>> from lq.export.formats.litert.file import Size
        >>> from lq.export.formats.litert.listing import listing
        >>> from lq.export.formats.litert.operators import OPERATORS
        >>> from lq.export.formats.litert.tensors import Tensors
        >>> net = Tensors()
        >>> x = Value(net.new("x", [Size(3)], LiteRTGrid.of(0.5, 0)), order=(0,))
        >>> call = OperatorCall(net, "exp", {"self": x}, net.shape(x))
        >>> made = write_in_float(OPERATORS["exp"], call, Bounds(high=8.0))
        >>> print(listing(net.file))
        x/dequantize: float32 [3] = DEQUANTIZE(x)
        exp: float32 [3] = EXP(x/dequantize)
        exp/clamp: float32 [3] = MINIMUM(exp, 8)
    """
    if known.fuses and bounds.activation:
        return _built(known, replace(call, bounds=bounds))
    made = _built(known, call)
    if bounds == _ANY:
        return made
    limits = {"self": made, "min": bounds.low, "max": bounds.high}
    return clamp(replace(call, arguments=limits, name=f"{call.name}/clamp"))


def has_integers(call: OperatorCall) -> bool:
    """Whether all tensors of a call are int8, and its constants the weight of a layer or a single number.

    Example:
        >>> from lq.export.formats.litert.file import Size
        >>> from lq.export.formats.litert.tensors import Tensors
        >>> net, shape = Tensors(), (Size(3),)
        >>> rounded = Value(net.new("rounded", shape, LiteRTGrid.of(0.5, 0)), order=(0,))
        >>> real = Value(net.new("real", shape), order=(0,))
        >>> sums = ({"self": rounded, "other": other} for other in (rounded, 2.0, real))
        >>> [has_integers(OperatorCall(net, "sum", arguments, shape)) for arguments in sums]
        [True, True, False]
    """
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
