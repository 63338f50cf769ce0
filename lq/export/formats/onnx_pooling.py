"""Pooling whose last windows reach beyond the padding, which ONNX and its runtimes count in other ways than PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx

aten = torch.ops.aten
Write = Callable[..., fx.Node]
"""Writes a call of an operation, given it and its arguments."""


class Windows(NamedTuple):
    """The windows along one dimension.

    Args:
        size: of the input.
        kernel: of a window.
        stride: from one to the next.
        padding: on either side.
        dilation: within a window.

    Example:
        >>> windows = Windows(size=7, kernel=2, stride=2, padding=0)
        >>> windows.whole, windows.begun
        (3, 4)
        >>> Windows(size=7, kernel=2, stride=2, padding=1).begun  # the fifth would begin in the padding
        4
    """

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int = 1

    @property
    def _room(self) -> int:
        return self.size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1

    @property
    def whole(self) -> int:
        """How many lie in the input and its padding."""
        return self._room // self.stride + 1

    @property
    def begun(self) -> int:
        """How many there are with ``ceil_mode``: none begins behind the input."""
        count = -(-self._room // self.stride) + 1
        return count - ((count - 1) * self.stride >= self.size + self.padding)

    @property
    def missing(self) -> int:
        """How much the last one reaches beyond the padding."""
        return max(0, (self.begun - self.whole) * self.stride - self._room % self.stride)


def rewrite_average_pooling(write: Write, node: fx.Node) -> fx.Node | None:
    """Average pooling with ``ceil_mode`` or with a divisor of its own, in calls that every runtime computes alike.

    Args:
        write: to write them.
        node: a call of ``avg_pool1d``, ``avg_pool2d`` or ``avg_pool3d``.

    Returns:
        the result, or ``None`` where the call can stay or its sizes are open.
    """
    given, windows = _arguments(node), _windows(node)
    divisor, counts_padding = given.get("divisor_override"), given["count_include_pad"]
    if windows is None or not (given["ceil_mode"] or divisor):
        return None
    x, kernel, stride = node.args[0], [one.kernel for one in windows], [one.stride for one in windows]
    padding, nothing = [one.padding for one in windows], [0] * len(windows)
    is_cut = given["ceil_mode"] and any(one.missing for one in windows)
    if divisor:
        x = _padded(write, x, [(one.padding, one.padding + one.missing * is_cut) for one in windows])
        mean = write(node.target, x, kernel, stride, nothing)
        return write(aten.mul.Tensor, mean, math.prod(kernel) / divisor)
    if not is_cut:
        return write(node.target, x, kernel, stride, padding, False, counts_padding)
    if not counts_padding:
        return None
    # What lies beyond the padding is not counted. ONNX counts it, unless the padding is not counted either.
    x = _padded(write, x, [(one.padding, one.padding) for one in windows])
    out = write(node.target, x, kernel, stride, nothing, True, False)
    for dim, one in enumerate(windows, start=-len(windows)):
        if out.meta["val"].shape[dim] > one.begun:  # windows that begin in the padding
            out = write(aten.slice.Tensor, out, dim, 0, one.begun)
    return out


def rewrite_max_pooling(write: Write, node: fx.Node) -> fx.Node | None:
    """Max pooling with ``ceil_mode`` that has no window more for it; ONNX counts those that begin in the padding.

    Args:
        write: to write calls.
        node: a call of ``max_pool1d``, ``max_pool2d`` or ``max_pool3d``.

    Returns:
        the result, or ``None`` where the call can stay or its sizes are open.
    """
    windows = _windows(node)
    if windows is None or not _arguments(node)["ceil_mode"] or any(one.begun > one.whole for one in windows):
        return None
    lists = ([one[part] for one in windows] for part in range(1, 5))
    return write(node.target, node.args[0], *lists)


def _arguments(node: fx.Node) -> dict[str, Any]:
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    names = [argument.name for argument in schema]
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _windows(node: fx.Node) -> list[Windows] | None:
    given = _arguments(node)
    sizes = given["self"].meta["val"].shape[-_dimensions(node) :]
    if not all(isinstance(size, int) for size in sizes):
        return None
    kernel = _each(given["kernel_size"], len(sizes))
    stride = _each(given["stride"], len(sizes)) or kernel
    others = (_each(given.get(name, 1), len(sizes)) for name in ("padding", "dilation"))
    return [Windows(*one) for one in zip(sizes, kernel, stride, *others, strict=True)]


def _dimensions(node: fx.Node) -> int:
    return int(node.target._schema.name[-2])  # type: ignore[union-attr]  # "aten::avg_pool2d"


def _each(value: int | list[int], count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _padded(write: Write, x: Any, sides: list[tuple[int, int]]) -> Any:
    pads = [size for side in reversed(sides) for size in side]
    return write(aten.constant_pad_nd.default, x, pads, 0.0) if any(pads) else x
