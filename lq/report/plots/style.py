"""What all pictures share: a figure without global state, and colours that everybody can tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design", https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000",
)  # fmt: skip
GREY = "#767676"
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

WIDTH = 5.8  # inches: narrow enough to be read on a phone
_NEAR = 0.15  # as a share of the first value

_SETTINGS: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
}


def check_matplotlib() -> None:
    """Refuse to begin what will end in pictures without matplotlib.

    Raises:
        ModuleNotFoundError: if it is not installed.

    Example:
        >>> check_matplotlib()  # nothing to complain of: it is installed
    """
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("Pictures need matplotlib: pip install 'lightning-qat[plots]'.")


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Any]]:
    """A figure and its axes in one list; sizes in inches.

    It belongs to nobody but the caller: ``matplotlib.pyplot`` keeps no reference, and no window opens.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.

    Example:
        >>> figure, axes = new_figure(6, 3, columns=2)
        >>> len(axes)
        2
    """
    check_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def window(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis for figures that are to be told apart, which one far off would squeeze together.

    Args:
        values: the first one is what the others are compared with; what is far from it is not waited for.

    Returns:
        lowest and highest value of the axis.

    Example:
        >>> window([1.0, 0.9, 0.1])
        (0.875, 1.045)
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    near = [value for value in finite if abs(value - finite[0]) <= _NEAR * abs(finite[0])]
    margin = max(max(near) - min(near), 0.01 * abs(finite[0])) or 1.0
    return min(near) - 0.25 * margin, max(near) + 0.45 * margin


def finish(figure: Figure, title: str, columns: int = 2) -> Figure:
    """Title at the top left, one legend below all panels, where it hides nothing.

    Args:
        figure: from :func:`new_figure`.
        title: short text.
        columns: of the legend.

    Returns:
        the figure.

    Example:
        >>> figure, (left, right) = new_figure(6, 3, columns=2)
        >>> for axis in (left, right):
        ...     _ = axis.plot([0, 1], label="int8")
        >>> [text.get_text() for text in finish(figure, "Two panels").legends[0].get_texts()]
        ['int8']
    """
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11.5)
    entries: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=columns,
            fontsize=9.5,
            frameon=False,
        )
    return figure
