"""The calls of torch functions that are layers, and where each has its input, weight and bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from lq.tracing.ops import recorded

Argument = tuple[int, str]  # its position, and its name as a keyword
INPUT: Argument = (0, "input")  # of most functions


@dataclass(frozen=True)
class LayerCall:
    """How an operation computes a layer.

    Args:
        kind: the module that does the same.
        channel_axis: of the weight, the axis of output channels.
        input: the argument that is the layer's input.
        weight: that is its weight.
        bias: that is its bias.

    Example:
        >>> LAYERS["addmm"].bias, LAYERS["addmm"].weight, LAYERS["conv2d"].weight
        ((0, 'input'), (2, 'mat2'), (1, 'weight'))
    """

    kind: type[nn.Module]
    channel_axis: int = 0
    input: Argument = INPUT
    weight: Argument = (1, "weight")
    bias: Argument = (2, "bias")


PARAMETER = "parameter"  # of what is computed of parameters alone, one at least
# Products of matrices; layers if the second one is made of a parameter.
WEIGHTED_PRODUCTS: Mapping[str, LayerCall] = {
    "matmul": LayerCall(nn.Linear, 1, weight=(1, "other")),
    "mm": LayerCall(nn.Linear, 1, weight=(1, "mat2")),
}
LAYERS: Mapping[str, LayerCall] = {
    **WEIGHTED_PRODUCTS,
    "linear": LayerCall(nn.Linear),
    "addmm": LayerCall(nn.Linear, 1, (1, "mat1"), (2, "mat2"), (0, "input")),
    "conv1d": LayerCall(nn.Conv1d),
    "conv2d": LayerCall(nn.Conv2d),
    "conv3d": LayerCall(nn.Conv3d),
    "conv_transpose1d": LayerCall(nn.ConvTranspose1d, 1),
    "conv_transpose2d": LayerCall(nn.ConvTranspose2d, 1),
    "conv_transpose3d": LayerCall(nn.ConvTranspose3d, 1),
}


def is_layer(node: fx.Node) -> bool:
    """Whether a recorded call is one of a layer: ``x @ weight`` is, a product of two activations is none.

    A buffer is no weight here: what is multiplied by it, such as the angles of position codes, may need more bits.

    Example:
        >>> import torch
        >>> from lq.instrument.record import record
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.ones(4, 4))
        ...     def forward(self, x):
        ...         return x @ self.weight @ x
        >>> graph = record(Net(), (torch.ones(4, 4),), {}).evaluation.graph
        >>> [is_layer(node) for node in graph.nodes if node.op == "call_function"]
        [True, False]
    """
    if recorded(node) not in WEIGHTED_PRODUCTS:
        return recorded(node) in LAYERS
    call = LAYERS[recorded(node)]
    x, weight = (argument(at, node.args, node.kwargs) for at in (call.input, call.weight))
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node) or x.meta.get("constant"):
        return False
    return bool(weight.meta.get(PARAMETER)) and len(weight.meta.get("shape") or ()) == 2


def argument(at: Argument, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An argument of a call, whether it was given by position or by name; ``None`` if it was not given.

    Example:
        >>> [argument((1, "weight"), *call) for call in [(("x", "w"), {}), (("x",), {"weight": "w"}), (("x",), {})]]
        ['w', 'w', None]
    """
    position, name = at
    return args[position] if position < len(args) else kwargs.get(name)


def first_argument(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a call with one argument, or whose input comes first, is given, whatever that is called.

    Example:
        >>> first_argument(("x",), {}), first_argument((), {"input": "x"})
        ('x', 'x')
    """
    return args[0] if args else next(iter(kwargs.values()))


def with_argument(at: Argument, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Arguments and keywords of the same call with another value for one of them, given as it was given.

    Example:
        >>> with_argument((1, "weight"), "new", ("x", "w"), {})
        (('x', 'new'), {})
        >>> with_argument((1, "weight"), "new", ("x",), {"weight": "w"})
        (('x',), {'weight': 'new'})
        >>> with_argument((2, "bias"), None, ("x", "w"), {})
        (('x', 'w'), {})
    """
    position, name = at
    if position < len(args):
        return (*args[:position], value, *args[position + 1 :]), kwargs
    return args, kwargs if value is None and name not in kwargs else {**kwargs, name: value}
