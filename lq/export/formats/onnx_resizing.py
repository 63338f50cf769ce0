"""Resizing and padding that runtimes of ONNX refuse, or compute in other ways than PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
Write = Callable[..., fx.Node]
_LARGEST_POWER = 256  # of two: multiples of 1/256 are exact in float32, however they are computed
_TIE = 1e-3  # what is farther from a whole number is on the same side of it in every runtime


def rewrite_circular_padding(write: Write, node: fx.Node) -> fx.Node | None:
    """Circular padding as parts that are put together; OpenVINO 2026.4 refuses the mode, as does opset 18.

    Args:
        write: to write calls.
        node: a call of ``pad``.

    Returns:
        the result, or ``None`` for other modes.

    Example:
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> print(calls_for_onnx(lambda x: torch.nn.functional.pad(x, (0, 1), mode="circular"), torch.ones(1, 2, 4)))
        slice = aten.slice.Tensor(x, -1, 0, 1)
        cat = aten.cat.default([x, slice], -1)
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
    torch.onnx leaves out ``align_corners``. By a factor, runtimes may make one pixel more or less than PyTorch.

    Args:
        write: to write calls.
        constant: to write a tensor.
        node: a call of ``upsample_bilinear2d``, ``upsample_bicubic2d``, or of one with antialiasing.

    Returns:
        the result, or ``None`` where the call can stay or its sizes are open.

    Raises:
        ValueError: for antialiasing of open sizes with settings that torch.onnx leaves out.

    Example:
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> resize = torch.nn.functional.interpolate
        >>> print(calls_for_onnx(lambda x: resize(x, size=(2, 2), mode="bicubic"), torch.ones(1, 2, 4, 4)))
        matmul = aten.matmul.default(x, constant_1)
        matmul_1 = aten.matmul.default(constant, matmul)
    """
    x: Any = node.args[0]
    given, wanted = _sizes(node)
    is_plain, is_cubic = "_aa" not in str(node.target), "bicubic" in str(node.target)
    if not all(isinstance(size, int) for size in (*given, *wanted)):
        if not is_plain and (node.args[2] or _factors(node)):
            raise ValueError(
                "ONNX has no antialiased resizing by a factor, or with align_corners, of a height or width that is "
                "dynamic. Write it as interpolate(x, size=...) without align_corners, or leave that dimension out of "
                "dynamic_axes"
            )
        return None
    has_kernel = not is_cubic or all(out >= size for out, size in zip(wanted, given, strict=True))
    if is_plain and has_kernel and _has_certain_sizes(node):
        return None
    rows, columns = (_matrix(node, dim, given[dim], wanted[dim]) for dim in (0, 1))
    made = write(aten.matmul.default, x, constant(columns.T.contiguous()))
    return write(aten.matmul.default, constant(rows), made)


def check_resizing(node: fx.Node) -> None:
    """Refuse linear resizing, of one or three dimensions, by a factor whose result may have other sizes in a runtime.

    Raises:
        ValueError: naming what to write.

    Example:
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> resize = torch.nn.functional.interpolate
        >>> calls_for_onnx(lambda x: resize(x, scale_factor=1.4, mode="linear"), torch.ones(1, 2, 5))
        Traceback (most recent call last):
        lq.export.formats.onnx_rewriter.RefusedCallError: ONNX cannot resize (5,) by a factor to (7,): ...
    """
    if not _has_certain_sizes(node):
        given, wanted = (tuple(sizes) for sizes in _sizes(node))
        raise ValueError(
            f"ONNX cannot resize {given} by a factor to {wanted}: with float32 the sizes come out larger or smaller. "
            f"Write interpolate(x, size={wanted}), or recompute_scale_factor=True"
        )


def rewrite_nearest_resizing(write: Write, constant: Callable[[Tensor], fx.Node], node: fx.Node) -> fx.Node | None:
    """Resizing to the nearest pixels as indices of these, where the runtimes may round to others than PyTorch.

    A pixel of the result may come from right between two, as every fifth one does from 90 pixels to 50. Which of the
    two that is depends on how a runtime divides.

    Args:
        write: to write calls.
        constant: to write a tensor.
        node: a call of ``upsample_nearest1d``, ``2d`` or ``3d``.

    Returns:
        the result, or ``None`` where all agree or the sizes are open.

    Example:
        >>> from lq.export.formats.onnx_calls import calls_for_onnx
        >>> resize = torch.nn.functional.interpolate
        >>> print(calls_for_onnx(lambda x: resize(x, size=50), torch.ones(1, 2, 90)))
        index_select = aten.index_select.default(x, 2, constant)
        >>> print(calls_for_onnx(lambda x: resize(x, size=180), torch.ones(1, 2, 90)))  # it stays
        upsample_nearest1d = aten.upsample_nearest1d.vec(x, [180], None)
    """
    given, wanted = _sizes(node)
    if not all(isinstance(size, int) for size in (*given, *wanted)):
        return None
    factors: Sequence[float | None] = _factors(node) or [None] * len(given)
    settings = list(zip(given, wanted, factors, strict=True))
    if all(_is_certain(*one) for one in settings) and _has_certain_sizes(node):
        return None
    made: Any = node.args[0]
    for dim, (size, out, factor) in enumerate(settings, start=2):
        places = _nearest(size, out, factor)
        if places != list(range(size)):
            made = write(aten.index_select.default, made, dim, constant(torch.tensor(places)))
    result: fx.Node = made
    return result


def _nearest(size: int, out: int, factor: float | None) -> list[int]:
    """From which pixel each one of the result comes, along one dimension."""
    settings = ([out], None) if factor is None else (None, [factor])
    places: Tensor = aten.upsample_nearest1d.vec(torch.arange(float(size))[None, None], *settings)
    return [int(place) for place in places.flatten()]


def _is_certain(size: int, out: int, factor: float | None) -> bool:
    """Whether every runtime takes the same pixels along one dimension as PyTorch does."""
    scale = Fraction(out, size) if factor is None else Fraction(factor)
    positions = [place / scale for place in range(out)]
    if _is_exact(scale):
        return _nearest(size, out, factor) == [min(math.floor(position), size - 1) for position in positions]
    return not any(map(_is_near_tie, positions[1:]))


def _has_certain_sizes(node: fx.Node) -> bool:
    """Whether a resizing by factors has as many pixels in every runtime as PyTorch makes."""
    factors = _factors(node)
    pairs = () if factors is None else zip(_sizes(node)[0], map(Fraction, factors), strict=True)
    return all(
        _is_exact(factor) or not isinstance(size, int) or not _is_near_tie(size * factor) for size, factor in pairs
    )


def _is_exact(scale: Fraction) -> bool:
    return scale.denominator <= _LARGEST_POWER and scale.denominator.bit_count() == 1


def _is_near_tie(position: Fraction) -> bool:
    return abs(position - round(position)) < _TIE


def _sizes(node: fx.Node) -> tuple[list[Any], list[Any]]:
    """Heights and widths, or the like, of the input and of the result."""
    x: Any = node.args[0]
    given, wanted = (list(value.meta["val"].shape[2:]) for value in (x, node))
    return given, wanted


def _factors(node: fx.Node) -> Sequence[float] | None:
    last = node.args[-1] if len(node.args) == len(node.target._schema.arguments) else None  # type: ignore[union-attr]
    found: Sequence[float] | None = node.kwargs.get("scale_factors", last)  # type: ignore[assignment]
    return found


def _matrix(node: fx.Node, dim: int, size: int, wanted: int) -> Tensor:
    """What the call does along one dimension: its results for inputs that are 1 at one place each."""
    given: tuple[Any, ...] = node.args
    aligned, factors = given[2], _factors(node)
    out, scales = [size, size], [1.0, 1.0]
    out[dim] = wanted
    settings: tuple[Any, ...] = (out, aligned, None)
    if factors is not None:
        scales[dim] = factors[dim]
        settings = (None, aligned, scales)
    call: Any = node.target
    made: Tensor = call(torch.eye(size)[None, None], *settings)[0, 0]
    return made if dim == 0 else made.T.contiguous()
