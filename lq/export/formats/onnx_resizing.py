"""Resizing and padding that runtimes of ONNX refuse, or compute in other ways than PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
Write = Callable[..., fx.Node]


def rewrite_circular_padding(write: Write, node: fx.Node) -> fx.Node | None:
    """Circular padding as parts that are put together; OpenVINO 2026.4 refuses the mode, as does opset 18.

    Args:
        write: to write calls.
        node: a call of ``pad``.

    Returns:
        the result, or ``None`` for other modes.
    """
    given: tuple[Any, ...] = node.args
    x, pads = given[:2]
    if node.kwargs.get("mode", given[2] if len(given) > 2 else "constant") != "circular":
        return None
    sides = [(-1 - place // 2, pads[place], pads[place + 1]) for place in range(0, len(pads), 2)]
    made: Any = x
    for dim, before, after in sides:  # first cut off what is negative
        if before < 0 or after < 0:
            made = write(aten.slice.Tensor, made, dim, max(-before, 0), after if after < 0 else 2**63 - 1)
    for dim, before, after in sides:
        parts = [made]
        if before > 0:
            parts.insert(0, write(aten.slice.Tensor, made, dim, -before, 2**63 - 1))
        if after > 0:
            parts.append(write(aten.slice.Tensor, made, dim, 0, after))
        made = write(aten.cat.default, parts, dim) if len(parts) > 1 else made
    out: fx.Node = made
    return out


def rewrite_resizing(write: Write, constant: Callable[[Tensor], fx.Node], node: fx.Node) -> fx.Node | None:
    """Resizing as a product of matrices, one for each dimension.

    ONNX Runtime 1.32 has no cubic resizing to less pixels, OpenVINO 2026.4 leaves antialiasing out, and with that
    torch.onnx leaves out ``align_corners``.

    Args:
        write: to write calls.
        constant: to write a tensor.
        node: a call of ``upsample_bicubic2d``, or of one with antialiasing.

    Returns:
        the result, or ``None`` where the call can stay or its sizes are open.

    Raises:
        ValueError: for antialiasing of open sizes with settings that torch.onnx leaves out.
    """
    x: Any = node.args[0]
    given, wanted = (value.meta["val"].shape[-2:] for value in (x, node))
    is_plain = "_aa" not in str(node.target)
    if not all(isinstance(size, int) for size in (*given, *wanted)):
        if not is_plain and (node.args[2] or (len(node.args) > 3 and node.args[3] is not None)):
            raise ValueError(
                "ONNX has no antialiased resizing by a factor, or with align_corners, of a height or width that is "
                "dynamic. Write it as interpolate(x, size=...) without align_corners, or leave that dimension out of "
                "dynamic_axes"
            )
        return None
    if is_plain and all(out >= size for out, size in zip(wanted, given, strict=True)):
        return None
    rows, columns = (_matrix(node, dim, given[dim], wanted[dim]) for dim in (0, 1))
    made = write(aten.matmul.default, x, constant(columns.T.contiguous()))
    return write(aten.matmul.default, constant(rows), made)


def _matrix(node: fx.Node, dim: int, size: int, wanted: int) -> Tensor:
    """What the call does along one dimension: its results for inputs that are 1 at one place each."""
    given: tuple[Any, ...] = node.args
    aligned, factors = given[2], given[3] if len(given) > 3 else None
    out, scales = [size, size], [1.0, 1.0]
    out[dim] = wanted
    settings: tuple[Any, ...] = (out, aligned, None)
    if factors is not None:
        scales[dim] = factors[dim]
        settings = (None, aligned, scales)
    call: Any = node.target
    made: Tensor = call(torch.eye(size)[None, None], *settings)[0, 0]
    return made if dim == 0 else made.T.contiguous()
