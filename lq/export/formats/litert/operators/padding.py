"""Windows that slide over images, and what is put around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lq.export.formats.litert.call import OperatorCall, UnsupportedError
from lq.export.formats.litert.file import LiteRTGrid, Size
from lq.export.formats.litert.tensors import Value

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """A kernel in height and width.

    Example:
        >>> window = Window(kernel=(3, 3), stride=(2, 2), dilation=(1, 2))
        >>> window.extent, window.before((8, 8), "same"), window.before((8, 8), [1, 2])
        ((3, 5), (1, 2), (1, 2))
        >>> window.settings
        {'strideH': 2, 'strideW': 2, 'dilationHFactor': 1, 'dilationWFactor': 2}
    """

    kernel: Pair
    stride: Pair
    dilation: Pair = (1, 1)

    @property
    def settings(self) -> dict[str, Any]:
        """Options of a convolution."""
        names = ("strideH", "strideW", "dilationHFactor", "dilationWFactor")
        return dict(zip(names, (*self.stride, *self.dilation), strict=True))

    @property
    def extent(self) -> Pair:
        """Pixels from its first to its last."""
        height, width = (d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))
        return height, width

    def before(self, sizes: Pair, padding: Sequence[int] | int | str) -> Pair:
        """How many pixels torch adds above and to the left."""
        if padding == "same":
            height, width = ((extent - 1) // 2 for extent in self.extent)
            return height, width
        if isinstance(padding, str):
            return 0, 0
        given = [padding] if isinstance(padding, int) else list(padding)
        if len(given) == 2:
            return given[0], given[1]
        return (0, given[0]) if sizes[0] == 1 and self.kernel[0] == 1 else (given[0], given[0])


def check_batch(call: OperatorCall, rank: int = 4) -> None:
    """Check that a window slides over a batch.

    Args:
        call: what is written.
        rank: dimensions of its result: those of the batch, of the channels and of the window.

    Raises:
        UnsupportedError: if there is no batch, which torch takes and LiteRT does not.

    Example:
        >>> from torch import nn, zeros
        >>> from lq.export.formats.litert.listing import listing_of
        >>> listing_of(nn.MaxPool2d(2), image=zeros(3, 8, 8))
        Traceback (most recent call last):
        ...
        lq.export.formats.litert.call.UnsupportedError: max_pool2d reads a tensor without a batch. ...
    """
    if len(call.shape) != rank:
        raise UnsupportedError(
            f"{call.name} reads a tensor without a batch. Give it x.unsqueeze(0), and take what it returns by [0]"
        )


def padded(
    call: OperatorCall,
    tensor: int,
    window: Window,
    sizes: Pair,
    out: Pair,
    before: Pair,
    fill: int | float | None = None,
    same: bool = True,
) -> tuple[int, int]:
    """A tensor ready for a window, and the code of LiteRT's scheme: SAME where that adds the same pixels.

    Args:
        call: what is written.
        tensor: in height, width and channels.
        window: that slides over it.
        sizes: its height and width.
        out: those of the result.
        before: pixels to be added above and to the left; those behind follow from ``out``.
        fill: their value; ``None`` is zero.
        same: whether the scheme SAME may stand for them.

    Example:
        >>> from torch import nn, zeros
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(nn.MaxPool2d(3, 2, padding=1), image=zeros(1, 4, 8, 8)))
        image/pad: float32 [1, 9, 9, 4] = PADV2(image, [[0, 0], [1, 0], [1, 0], [0, 0]], [-3.403e+38])
        max_pool2d: float32 [1, 4, 4, 4] = MAX_POOL_2D(image/pad, padding=VALID, strideH=2, strideW=2, filterHeight=3,
        filterWidth=3)
        >>> print(listing_of(nn.MaxPool2d(3, 1, padding=1), image=zeros(1, 4, 8, 8)))
        max_pool2d: float32 [1, 8, 8, 4] = MAX_POOL_2D(image, strideH=1, strideW=1, filterHeight=3, filterWidth=3)
    """
    from ai_edge_litert.schema_py_generated import Padding

    needed = [(o - 1) * s + e for o, s, e in zip(out, window.stride, window.extent, strict=True)]
    after = [max(0, n - size - b) for n, size, b in zip(needed, sizes, before, strict=True)]
    if not any((*before, *after)):
        return tensor, int(Padding.VALID)
    lacking = [max(0, n - size) for n, size in zip(needed, sizes, strict=True)]
    as_same = [(total // 2, total - total // 2) for total in lacking]
    rounded_up = [-(-size // s) for size, s in zip(sizes, window.stride, strict=True)]
    if same and as_same == list(zip(before, after, strict=True)) and rounded_up == list(out):
        return tensor, int(Padding.SAME)
    pads = [(0, 0), *zip(before, after, strict=True), (0, 0)]
    return pad_axes(call, tensor, pads, fill), int(Padding.VALID)


def pad_axes(call: OperatorCall, tensor: int, pads: Sequence[Pair], fill: int | float | None = None) -> int:
    """A tensor with values added at its ends, axis by axis.

    Example:
        >>> from lq.export.formats.litert.listing import listing
        >>> from lq.export.formats.litert.tensors import Tensors, Value
        >>> net = Tensors()
        >>> x = Value(net.new("x", [Size(2), Size(3)]), order=(0, 1))
        >>> call = OperatorCall(net, "pad", {"self": x}, net.shape(x))
        >>> made = pad_axes(call, x.tensor, [(0, 0), (1, 2)], fill=0.5)
        >>> print(listing(net.file))
        x/pad: float32 [2, 6] = PADV2(x, [[0, 0], [1, 2]], [0.5])
    """
    source = call.net.file.tensors[tensor]
    shape = [Size(size.length + sum(pair), size.changes) for size, pair in zip(source.shape, pads, strict=True)]
    target = call.net.new(f"{source.name}/pad", shape, source.grid, source.dtype)
    amounts = call.net.constant(np.array(pads, np.int32), "pads")
    if fill is None or (source.grid is not None and fill == source.grid.zero_point):
        call.net.file.operator("PAD", [tensor, amounts], [target], "PadOptions")
    else:
        value = call.net.constant(np.array([fill], np.dtype(source.dtype)), "fill", source.grid)
        call.net.file.operator("PADV2", [tensor, amounts, value], [target], "PadV2Options")
    return target


def pad(call: OperatorCall) -> Value:
    """Values around a tensor: zeros, another number, or its own mirrored, on the grid that it lies on.

    A number that lies on another grid than the tensor brings it to that of the result first, or to float.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> from torch.nn import functional as F
        >>> print(listing_of(lambda image: F.pad(image, (1, 2)), image=torch.zeros(1, 4, 6, 6)))
        image/pad: float32 [1, 6, 9, 4] = PAD(image, [[0, 0], [0, 0], [1, 2], [0, 0]])
        >>> print(listing_of(lambda image: F.pad(image, (1, 2, 0, 0), "reflect"), image=torch.zeros(1, 4, 6, 6)))
        pad: float32 [1, 6, 9, 4] = MIRROR_PAD(image, [[0, 0], [0, 0], [1, 2], [0, 0]])
    """
    x, mode = call["self"], call.get("mode", "constant")
    if mode == "constant" and leaves_grid(call):
        x = call.net.real(x) if call.grid is None else call.net.on_grid(x, call.grid, f"{call.name}/input")
    x = call.net.settled(x)
    given, rank = list(call["pad"]), len(call.shape)
    by_dimension = {rank - 1 - i // 2: (given[i], given[i + 1]) for i in range(0, len(given), 2)}
    pads = [by_dimension.get(dimension, (0, 0)) for dimension in x.order]
    if any(n < 0 for pair in pads for n in pair):
        raise UnsupportedError(f"{call.name} pads by a negative number")
    if mode == "reflect":
        return _mirrored(call, x, pads)
    if mode != "constant":
        raise UnsupportedError(f"{call.name} pads with mode {mode!r}")
    grid, number = call.net.grid(x), _number(call)
    fill = number if grid is None else _nearest(grid, number)
    return Value(pad_axes(call, x.tensor, pads, fill or (None if grid is None else fill)), x.order)


def leaves_grid(call: OperatorCall) -> bool:
    """Whether a padding adds a number that is beyond the grid of the tensor.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> from torch.nn import functional as F
        >>> print(listing_of(lambda x: F.pad(x, (0, 1), value=-1e9), step=0.5, x=torch.zeros(3)))
        x/pad: 0.5 * int8 [4] = PADV2(x, [[0, 1]], [-64])
    """
    grid, number = call.net.grid(call["self"]), _number(call)
    if grid is None or call.get("mode", "constant") != "constant":
        return False
    return abs((_nearest(grid, number) - grid.zero_point) * grid.scale - number) > 0.501 * grid.scale


def _number(call: OperatorCall) -> float:
    return float(call.get("value") or 0.0)


def _nearest(grid: LiteRTGrid, number: float) -> int:
    """The int8 value that comes nearest to a number."""
    ends = (-128 - grid.zero_point) * grid.scale, (127 - grid.zero_point) * grid.scale
    return grid.integer(max(ends[0], min(ends[1], number)))


def _mirrored(call: OperatorCall, x: Value, pads: Sequence[Pair]) -> Value:
    amounts = call.net.constant(np.array(pads, np.int32), "pads")
    call = call.on(call.net.grid(x))
    return call.write_in("MIRROR_PAD", [x.tensor, amounts], x.order, "MirrorPadOptions", mode=0)
