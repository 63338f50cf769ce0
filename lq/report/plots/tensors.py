"""A tensor and the ranges that it could be clipped to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lq.report.plots.style import BLUE, GREEN, ORANGE, PURPLE, RED, WIDTH, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = (ORANGE, BLUE, GREEN, RED, PURPLE)
_LINES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1)))


def plot_clipping(values: Tensor, ranges: Mapping[str, tuple[float, float]] | None = None, name: str = "") -> Figure:
    """Histogram of a tensor, with the ranges that a quantizer could clip it to drawn on it.

    Args:
        values: floating tensor of any shape.
        ranges: name -> (lowest, highest) value of the range, at most five; None for the two that min and max give:
            the affine one, [min, max], and the symmetric one, [-max|x|, max|x|].
        name: of the tensor, for the title.

    Returns:
        the figure.

    Raises:
        ValueError: if the tensor holds no finite values, or there are more than five ranges.

    Source:
        "QAT in practice, basics", after the post "Practical Quantization in PyTorch".

    Example:
        >>> figure = plot_clipping(torch.randn(1000) + 1, name="conv1")
        >>> [text.get_text().split("  ")[0] for text in figure.legends[0].get_texts()]
        ['affine', 'symmetric']
    """
    flat = values.detach().float().flatten().cpu()
    if flat.numel() == 0 or not bool(torch.isfinite(flat).all()):
        raise ValueError("plot_clipping: the tensor is empty or holds NaN or infinity; give finite values.")
    ranges = {**(ranges or _both(flat))}
    if len(ranges) > len(_COLOURS):
        raise ValueError(f"plot_clipping: {len(ranges)} ranges cannot be told apart; give at most {len(_COLOURS)}.")
    figure, (axis,) = new_figure(WIDTH, 3.6)
    ends = torch.tensor([end for pair in ranges.values() for end in pair] + [float(flat.min()), float(flat.max())])
    axis.hist(flat.numpy(), bins=160, color="#b9c4cc", log=True)
    for (label, (low, high)), colour, line in zip(ranges.items(), _COLOURS, _LINES, strict=False):
        _draw_range(axis, f"{label}  [{low:.3g}, {high:.3g}]", low, high, colour, line)
    margin = 0.04 * float(ends.max() - ends.min())
    axis.set_xlim(float(ends.min()) - margin, float(ends.max()) + margin)
    axis.set_xlabel("value")
    axis.set_ylabel("count (log scale)")
    return finish(figure, f"{name}: clipping ranges" if name else "clipping ranges")


def _both(flat: Tensor) -> dict[str, tuple[float, float]]:
    low, high = float(flat.min()), float(flat.max())
    largest = max(abs(low), abs(high))
    return {"affine": (low, high), "symmetric": (-largest, largest)}


def _draw_range(axis: Any, label: str, low: float, high: float, colour: str, line: Any) -> None:
    axis.axvline(low, color=colour, linestyle=line, linewidth=1.8, label=label)
    axis.axvline(high, color=colour, linestyle=line, linewidth=1.8)
    axis.axvspan(low, high, color=colour, alpha=0.06, linewidth=0)
