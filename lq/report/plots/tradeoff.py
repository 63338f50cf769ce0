"""What a model is worth against what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lq.report.plots.style import CYCLE, MARKERS, finish, new_figure, window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

_COSTS = (("latency_ms", "latency in ms"), ("size_mb", "size in MB"))


def plot_tradeoff(rows: Sequence[Row], metric: str | None = None) -> Figure:
    """A metric against latency and against size, a point per model.

    Args:
        rows: those of the comparison table; models without the metric or the cost are left out.
        metric: which one; None for the first.

    Returns:
        the figure, with one panel for each cost that some row has.

    Raises:
        ValueError: if no row has both a metric and a cost.

    Example:
        >>> rows = [{"model": "FP32", "metrics": {"accuracy": 0.92}, "size_mb": 14.0},
        ...     {"model": "int8", "metrics": {"accuracy": 0.91}, "size_mb": 3.6}]
        >>> plot_tradeoff(rows).axes[0].get_xlabel()
        'size in MB'
    """
    names = [name for row in rows for name in row.get("metrics") or {}]
    metric = metric or (names[0] if names else None)
    judged = [row for row in rows if (row.get("metrics") or {}).get(metric) is not None]
    panels = [(key, label) for key, label in _COSTS if any(row.get(key) is not None for row in judged)]
    if not panels or metric is None:
        raise ValueError("plot_tradeoff: no row has a metric together with latency_ms or size_mb.")
    figure, axes = new_figure(2.8 * len(panels) + 0.6, 3.4, columns=len(panels))
    shown = [row for row in judged if any(row.get(key) is not None for key, _ in panels)]
    low, high = window([row["metrics"][metric] for row in shown])
    for axis, (key, cost) in zip(axes, panels, strict=True):
        for index, row in enumerate(shown):
            if row.get(key) is not None:
                point = {"color": CYCLE[index % len(CYCLE)], "marker": MARKERS[index % len(MARKERS)]}
                value = row["metrics"][metric]
                label = row["model"] + _beyond(value, low, high)
                axis.scatter(row[key], min(max(value, low), high), s=72, label=label, zorder=3, clip_on=False, **point)
        axis.set_xlim(0, 1.12 * max(row[key] for row in shown if row.get(key) is not None))
        axis.locator_params(axis="x", nbins=5)
        axis.set_ylim(low, high)
        axis.set_xlabel(cost)
    axes[0].set_ylabel(metric.replace("_", " "))
    costs = " and ".join(label.partition(" ")[0] for _, label in panels)
    return finish(figure, f"{metric.replace('_', ' ')} against {costs}")


def _beyond(value: float, low: float, high: float) -> str:
    """For the legend: beside their points, on the edge, such figures would lie on top of each other."""
    if low <= value <= high:
        return ""
    arrow = "\u2193" if value < low else "\u2191"
    return f" ({arrow} {value:.4f})"
