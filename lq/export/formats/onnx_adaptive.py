"""Adaptive pooling that torch.onnx has no translation of."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
Write = Callable[..., fx.Node]


def rewrite_adaptive_pooling(write: Write, node: fx.Node) -> fx.Node | None:
    """Adaptive pooling in windows of one size where the sizes divide, and else one by one, dimension by dimension.

    Args:
        write: to write calls.
        node: a call of ``adaptive_avg_pool1d``, ``2d`` or ``3d``, or of ``adaptive_max_pool1d``, ``2d`` or ``3d``.

    Returns:
        the result, of several the first, or ``None`` where torch.onnx translates it itself, or the places of maxima
        are read.

    Raises:
        ValueError: if the number of results is open, and not the size of the input.

    Example:
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> pool = torch.nn.functional.adaptive_max_pool1d
        >>> print(calls_for_onnx(lambda x: pool(x, 2), torch.ones(1, 2, 6)))
        max_pool1d = aten.max_pool1d.default(x, [3], [3])
        >>> print(calls_for_onnx(lambda x: pool(x, 2), torch.ones(1, 2, 5)))
        slice = aten.slice.Tensor(x, -1, 0, 3)
        amax = aten.amax.default(slice, [-1], True)
        slice_1 = aten.slice.Tensor(x, -1, 2, 5)
        amax_1 = aten.amax.default(slice_1, [-1], True)
        cat = aten.cat.default([amax, amax_1], -1)
    """
    x, wanted = node.args
    name: str = node.target._schema.name  # type: ignore[union-attr]  # "aten::adaptive_max_pool2d"
    dimensions, is_maximum = int(name[-2]), "max" in name
    given = x.meta["val"].shape[-dimensions:]  # type: ignore[union-attr]
    outputs: list[Any] = [wanted] * dimensions if isinstance(wanted, int) else list(wanted)  # type: ignore[arg-type]
    outputs = [_number(size, out) for size, out in zip(given, outputs, strict=True)]
    is_open = not all(isinstance(size, int) for size in given)
    if is_maximum and _reads_places(node):
        return None
    if not is_maximum and dimensions < 3 and not (is_open and any(out != 1 for out in outputs)):
        return None
    if not is_open and all(size % out == 0 for size, out in zip(given, outputs, strict=True)):
        window = [size // out for size, out in zip(given, outputs, strict=True)]
        pool = getattr(aten, f"{'max' if is_maximum else 'avg'}_pool{dimensions}d").default
        return write(pool, x, window, window)
    made: Any = x
    for dim, (size, out) in enumerate(zip(given, outputs, strict=True), start=-dimensions):
        made = _along(write, made, dim, size, out, is_maximum)
    return made  # type: ignore[no-any-return]


def _number(size: Any, out: Any) -> Any:
    """How many results there are along a dimension: the size itself where it stays, as for ``None``."""
    if isinstance(out, int):
        return out
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # brings sympy

    if statically_known_true(out.meta["val"] == size):
        return size
    raise ValueError(
        "ONNX has no adaptive pooling to a height, width or length that is dynamic. Write its size as a number, or as "
        "None, which keeps that of the input, or leave that dimension out of dynamic_axes"
    )


def _along(write: Write, x: Any, dim: int, size: Any, out: Any, is_maximum: bool) -> Any:
    """Pooled along one dimension: means of means are means, as all windows there are of one size."""
    if size is out or size == out:
        return x
    length = size if isinstance(size, int) else write(aten.sym_size.int, x, x.meta["val"].dim() + dim)
    reduced, pooled = aten.amax.default if is_maximum else aten.mean.dim, []
    for place in range(out):
        window = write(aten.slice.Tensor, x, dim, *_window(write, length, place, out))
        pooled.append(write(reduced, window, [dim], True))
    return write(aten.cat.default, pooled, dim) if len(pooled) > 1 else pooled[0]


def _window(write: Write, length: Any, place: int, out: int) -> tuple[Any, Any]:
    """Begin and end of the window of one output, of numbers or of a size that is open."""
    if isinstance(length, int):
        return place * length // out, -(-(place + 1) * length // out)
    begin = write(operator.floordiv, write(operator.mul, length, place), out) if place else 0
    above = write(operator.add, write(operator.mul, length, place + 1), out - 1)
    return begin, write(operator.floordiv, above, out)


def _reads_places(node: fx.Node) -> bool:
    return any(user.args[1] == 1 and user.users for user in node.users)
