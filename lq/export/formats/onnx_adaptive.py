"""Adaptive pooling that torch.onnx has no translation of."""

from __future__ import annotations

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
        node: a call of ``adaptive_avg_pool3d``, or of ``adaptive_max_pool1d``, ``2d`` or ``3d``.

    Returns:
        the result, of several the first, or ``None`` where its sizes are open or the places of maxima are read.
    """
    x, wanted = node.args
    name: str = node.target._schema.name  # type: ignore[union-attr]  # "aten::adaptive_max_pool2d"
    dimensions, is_maximum = int(name[-2]), "max" in name
    given = x.meta["val"].shape[-dimensions:]  # type: ignore[union-attr]
    if not all(isinstance(size, int) for size in given) or (is_maximum and _reads_places(node)):
        return None
    outputs: list[int] = [wanted] * dimensions if isinstance(wanted, int) else list(wanted)  # type: ignore[arg-type]
    if all(size % out == 0 for size, out in zip(given, outputs, strict=True)):
        window = [size // out for size, out in zip(given, outputs, strict=True)]
        pool = getattr(aten, f"{'max' if is_maximum else 'avg'}_pool{dimensions}d").default
        return write(pool, x, window, window)
    made: Any = x
    for dim, (size, out) in enumerate(zip(given, outputs, strict=True), start=-dimensions):
        made = _along(write, made, dim, size, out, is_maximum)
    return made  # type: ignore[no-any-return]


def _along(write: Write, x: Any, dim: int, size: int, out: int, is_maximum: bool) -> Any:
    """Pooled along one dimension: means of means are means, as all windows there are of one size."""
    if size == out:
        return x
    pooled = []
    for place in range(out):
        begin, end = place * size // out, -(-(place + 1) * size // out)
        window = write(aten.slice.Tensor, x, dim, begin, end)
        if end - begin > 1:
            window = write(aten.amax.default if is_maximum else aten.mean.dim, window, [dim], True)
        pooled.append(window)
    return write(aten.cat.default, pooled, dim)


def _reads_places(node: fx.Node) -> bool:
    return any(user.args[1] == 1 and user.users for user in node.users)
