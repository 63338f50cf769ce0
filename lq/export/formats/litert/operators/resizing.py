"""Images in another size."""

from __future__ import annotations

import math

from lq.export.formats.litert.call import OperatorCall, UnsupportedError
from lq.export.formats.litert.orders import CHANNELS_LAST
from lq.export.formats.litert.tensors import Value

_LAST = CHANNELS_LAST[4]


def resize_nearest(call: OperatorCall) -> Value:
    """To another size, each pixel as its nearest one.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.Upsample(scale_factor=2), image=torch.zeros(1, 4, 6, 6)))
        upsample_nearest2d: float32 [1, 12, 12, 4] = RESIZE_NEAREST_NEIGHBOR(image, [12, 12])
    """
    return _resize(call.on(call.net.grid(call["input"])), "RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions")


def resize_bilinear(call: OperatorCall) -> Value:
    """To another size; on integers on the grid of the input, and from there to that of the result.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert.listing import listing_of
        >>> print(listing_of(torch.nn.UpsamplingBilinear2d(scale_factor=2), image=torch.zeros(1, 4, 6, 6)))
        upsample_bilinear2d: float32 [1, 12, 12, 4] = RESIZE_BILINEAR(image, [12, 12], alignCorners=True)
    """
    aligned = bool(call["align_corners"])
    settings = {"alignCorners": aligned, "halfPixelCenters": not aligned}
    own = call if call.grid is None else call.on(call.net.grid(call["input"]), "resize")
    made = _resize(own, "RESIZE_BILINEAR", "ResizeBilinearOptions", **settings)
    return made if call.grid is None else call.net.on_grid(made, call.grid, call.name)


def _resize(call: OperatorCall, kind: str, options: str, **settings: bool) -> Value:
    x = call.net.channels_last(call.value("input"))
    if len(call.shape) != 4:
        raise UnsupportedError(f"{call.name} resizes {len(call.shape) - 2} dimensions, not two")
    if not settings.get("alignCorners"):
        _check_factors(call, x)
    out = call.net.integers([size.length for size in call.shape[2:]])
    return call.write_in(kind, [x.tensor, out], _LAST, options, **settings)


def _check_factors(call: OperatorCall, x: Value) -> None:
    """Torch goes by the factors that it is given, LiteRT by the sizes that result."""
    factors = call.get("scale_factors") or [call.get("scales_h"), call.get("scales_w")]
    for factor, size, out in zip(
        factors, call.net.lengths(x)[2:], (size.length for size in call.shape[2:]), strict=True
    ):
        if factor is not None and not math.isclose(size * factor, out):
            raise UnsupportedError(
                f"{call.name} resizes {size} pixels by {factor:g} to {out}, and LiteRT by {out}/{size}; pass size=, or "
                "recompute_scale_factor=True"
            )
