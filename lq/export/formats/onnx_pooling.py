"""Pooling whose last windows reach beyond the padding, which ONNX and its runtimes count in other ways than PyTorch."""

from __future__ import annotations

import math
import operator
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
        size: of the input; ``None`` where it is open.
        kernel: of a window.
        stride: from one to the next.
        padding: on either side.
        dilation: within a window.

    Example:
        >>> windows = Windows(size=7, kernel=2, stride=2, padding=0)
        >>> windows.missing, windows.may_exceed
        (1, False)
        >>> windows = Windows(size=7, kernel=2, stride=2, padding=1)  # a fifth would begin in the padding
        >>> windows.missing, windows.may_exceed
        (0, True)
    """

    size: int | None
    kernel: int
    stride: int
    padding: int
    dilation: int = 1

    @property
    def missing(self) -> int:
        """How much to add behind the padding, for as many whole windows as there are with ``ceil_mode``."""
        if self.size is None:
            return self._most
        room = self._room(self.size)
        return max(0, (room + self._most) // self.stride * self.stride - room)

    @property
    def may_exceed(self) -> bool:
        """Whether ONNX may count one more with ``ceil_mode``: one that begins behind the input, as no other does."""
        if self.size is None:
            return self._most < self.stride - 1
        room = self._room(self.size)
        return -(-room // self.stride) > (room + self._most) // self.stride

    @property
    def _most(self) -> int:
        """How much may be missing, whatever the size: less than a step, and no window that begins behind the input."""
        return min(self._reach - self.padding, self.stride - 1)

    @property
    def _reach(self) -> int:
        return self.dilation * (self.kernel - 1)

    def _room(self, size: int) -> int:
        return size + 2 * self.padding - self._reach - 1


def rewrite_average_pooling(write: Write, node: fx.Node) -> fx.Node | None:
    """Average pooling with ``ceil_mode`` or with a divisor of its own, in calls that every runtime computes alike.

    Args:
        write: to write them.
        node: a call of ``avg_pool1d``, ``avg_pool2d`` or ``avg_pool3d``.

    Returns:
        the result, or ``None`` where the call can stay.

    Example:
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> pool = torch.nn.functional.avg_pool2d
        >>> print(calls_for_onnx(lambda x: pool(x, 2, ceil_mode=True), torch.ones(1, 2, 4, 4)))  # all windows are whole
        avg_pool2d = aten.avg_pool2d.default(x, [2, 2], [2, 2], [0, 0], False, True)
        >>> print(calls_for_onnx(lambda x: pool(x, 3, 2, padding=1, ceil_mode=True), torch.ones(1, 2, 4, 4)))
        constant_pad_nd = aten.constant_pad_nd.default(x, [1, 1, 1, 1], 0.0)
        avg_pool2d = aten.avg_pool2d.default(constant_pad_nd, [3, 3], [2, 2], [0, 0], True, False)
    """
    given, windows = _arguments(node), _windows(node)
    divisor, counts_padding = given.get("divisor_override"), given["count_include_pad"]
    if not (given["ceil_mode"] or divisor):
        return None
    x, kernel, stride = node.args[0], [one.kernel for one in windows], [one.stride for one in windows]
    padding, nothing = [one.padding for one in windows], [0] * len(windows)
    is_cut = given["ceil_mode"] and any(one.missing for one in windows)
    whole = [(one.padding, one.padding + one.missing * is_cut) for one in windows]
    if divisor:
        mean = write(node.target, _padded(write, x, whole), kernel, stride, nothing)
        return write(aten.mul.Tensor, mean, math.prod(kernel) / divisor)
    if not is_cut:
        return write(node.target, x, kernel, stride, padding, False, counts_padding)
    if any(one.may_exceed for one in windows):
        counted = _padded(write, _ones(write, x, len(windows)), _sides(windows), float(counts_padding))
        counted = _padded(write, counted, [(0, one.missing) for one in windows])
        means = (write(node.target, of, kernel, stride, nothing) for of in (_padded(write, x, whole), counted))
        return write(aten.div.Tensor, *means)
    if not counts_padding:
        return None
    # What lies beyond the padding is not counted. ONNX counts it, unless the padding is not counted either.
    return write(node.target, _padded(write, x, _sides(windows)), kernel, stride, nothing, True, False)


def rewrite_max_pooling(write: Write, node: fx.Node) -> fx.Node | tuple[fx.Node, ...] | None:
    """Max pooling with ``ceil_mode`` without it, where ONNX may have a window more that begins in the padding.

    Args:
        write: to write calls.
        node: a call of ``max_pool1d``, ``max_pool2d`` or ``max_pool3d``, or of one that also returns the places.

    Returns:
        the result, or the results, or ``None`` where the call can stay.

    Raises:
        ValueError: if places in a tensor of open size are read.

    Example:
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> pool = torch.nn.functional.max_pool1d
        >>> print(calls_for_onnx(lambda x: pool(x, 2, padding=1, ceil_mode=True), torch.ones(1, 2, 7)))
        max_pool1d = aten.max_pool1d.default(x, [2], [2], [1], [1])
        >>> print(calls_for_onnx(lambda x: pool(x, 2, ceil_mode=True), torch.ones(1, 2, 7)))  # it stays
        max_pool1d = aten.max_pool1d.default(x, [2], [], [0], [1], True)
    """
    given, windows = _arguments(node), _windows(node)
    is_cut = any(one.missing for one in windows)
    if not given["ceil_mode"] or (is_cut and not any(one.may_exceed for one in windows)):
        return None
    x: Any = node.args[0]
    lowest = torch.finfo(x.meta["val"].dtype).min
    padded = _padded(write, x, [(0, one.missing) for one in windows], lowest)
    made = write(node.target, padded, *([one[part] for one in windows] for part in range(1, 5)))
    if not isinstance(node.meta["val"], tuple):
        return made
    values, places = (write(operator.getitem, made, number) for number in (0, 1))
    return values, _in_unpadded(write, places, windows)


def _in_unpadded(write: Write, places: fx.Node, windows: list[Windows]) -> fx.Node:
    """Places in a padded image, counted row by row, as those in the image itself."""
    if not any(one.missing for one in windows[1:]):
        return places  # as many in each row
    if any(one.size is None for one in windows[1:]):
        raise ValueError(
            "ONNX has no max pooling with ceil_mode and return_indices of a height, width or length that is dynamic. "
            "Leave ceil_mode out, or leave that dimension out of dynamic_axes"
        )
    made, factor = None, 1
    for one in reversed(windows):
        assert one.size is not None
        place = write(aten.remainder.Scalar, places, one.size + one.missing)
        step = write(aten.mul.Tensor, place, factor)
        made = step if made is None else write(aten.add.Tensor, made, step)
        places = write(aten.div.Tensor_mode, places, one.size + one.missing, rounding_mode="floor")
        factor *= one.size
    assert made is not None
    return made


def _arguments(node: fx.Node) -> dict[str, Any]:
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    names = [argument.name for argument in schema]
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _windows(node: fx.Node) -> list[Windows]:
    given = _arguments(node)
    sizes = given["self"].meta["val"].shape[-_dimensions(node) :]
    known = [size if isinstance(size, int) else None for size in sizes]
    kernel = _each(given["kernel_size"], len(sizes))
    stride = _each(given["stride"], len(sizes)) or kernel
    others = (_each(given.get(name, 1), len(sizes)) for name in ("padding", "dilation"))
    return [Windows(*one) for one in zip(known, kernel, stride, *others, strict=True)]


def _dimensions(node: fx.Node) -> int:
    name: str = node.target._schema.name  # type: ignore[union-attr]  # "aten::avg_pool2d"
    return int(name.removesuffix("_with_indices")[-2])


def _each(value: int | list[int], count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _sides(windows: list[Windows]) -> list[tuple[int, int]]:
    return [(one.padding, one.padding) for one in windows]


def _ones(write: Write, x: Any, dimensions: int) -> fx.Node:
    """A one for each place of one channel of one sample."""
    for dim in range(x.meta["val"].dim() - dimensions):
        x = write(aten.slice.Tensor, x, dim, 0, 1)
    return write(aten.ones_like.default, x)


def _padded(write: Write, x: Any, sides: list[tuple[int, int]], value: float = 0.0) -> Any:
    pads = [size for side in reversed(sides) for size in side]
    return write(aten.constant_pad_nd.default, x, pads, value) if any(pads) else x
