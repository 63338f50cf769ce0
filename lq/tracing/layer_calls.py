"""The calls of torch functions that are layers, and where each has its input, weight and bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

Argument = tuple[int, str]  # its position, and its name as a keyword


@dataclass(frozen=True)
class LayerCall:
    """How an operation computes a layer.

    Args:
        kind: the module that does the same.
        channel_axis: of the weight, the axis of output channels.
        input: the argument that is the layer's input.
        weight: that is its weight.
        bias: that is its bias.
    """

    kind: type[nn.Module]
    channel_axis: int = 0
    input: Argument = (0, "input")
    weight: Argument = (1, "weight")
    bias: Argument = (2, "bias")


LAYERS: Mapping[str, LayerCall] = {
    "linear": LayerCall(nn.Linear),
    "addmm": LayerCall(nn.Linear, 1, (1, "mat1"), (2, "mat2"), (0, "input")),
    "conv1d": LayerCall(nn.Conv1d),
    "conv2d": LayerCall(nn.Conv2d),
    "conv3d": LayerCall(nn.Conv3d),
    "conv_transpose1d": LayerCall(nn.ConvTranspose1d, 1),
    "conv_transpose2d": LayerCall(nn.ConvTranspose2d, 1),
    "conv_transpose3d": LayerCall(nn.ConvTranspose3d, 1),
}


def argument(at: Argument, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An argument of a call, whether it was given by position or by name; ``None`` if it was not given.

    Example:
        >>> [argument((1, "weight"), *call) for call in [(("x", "w"), {}), (("x",), {"weight": "w"}), (("x",), {})]]
        ['w', 'w', None]
    """
    position, name = at
    return args[position] if position < len(args) else kwargs.get(name)


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
