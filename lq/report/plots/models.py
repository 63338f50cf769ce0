"""What is left of a metric: FP32 against everything that was made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lq.report.plots.layers import draw_sensitivity
from lq.report.plots.style import BLACK, BLUE, GREY, ORANGE, WIDTH, finish, new_figure, window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

_LINE = 0.27  # inches for each model


def plot_models(rows: Sequence[Row], metric: str | None = None) -> Figure:
    """A metric of every model on one line, FP32 as a vertical line through all.

    Args:
        rows: those of the comparison table, FP32 first.
        metric: which one; None for the first.

    Returns:
        the figure.

    Raises:
        ValueError: if no row has the metric.

    Example:
        >>> rows = [{"model": "FP32", "metrics": {"accuracy": 0.92}}, {"model": "PTQ", "metrics": {"accuracy": 0.1}}]
        >>> [label.get_text() for label in plot_models(rows).axes[0].get_yticklabels()]
        ['FP32', 'PTQ']
    """
    judged, name = _judged(rows, metric)
    figure, (axis,) = new_figure(WIDTH, 1.1 + _LINE * len(judged))
    _draw_models(axis, judged, name)
    return finish(figure, f"{name.replace('_', ' ')} of float, PTQ and QAT")


def plot_overview(rows: Sequence[Row], sensitivity: Sequence[Row], title: str, top: int = 8) -> Figure:
    """The result and its reason, side by side: what each model reaches, and which layers cause the loss.

    Args:
        rows: those of the comparison table, FP32 first.
        sensitivity: from :func:`lq.analysis.sensitivity`.
        title: above both.
        top: how many layers to show.

    Returns:
        the figure.

    Raises:
        ValueError: if no row has a metric, or there are no layers.

    Example:
        >>> rows = [{"model": "FP32", "metrics": {"accuracy": 0.92}}, {"model": "PTQ", "metrics": {"accuracy": 0.1}}]
        >>> loss = [{"layer": "fc", "direction": "one", "metric": "accuracy", "loss": 0.02, "share": 0.5}]
        >>> len(plot_overview(rows, loss, "MobileNetV2").axes)
        2
    """
    judged, name = _judged(rows, None)
    figure, (left, right) = new_figure(10.4, 1.6 + _LINE * max(len(judged), top), columns=2)
    _draw_models(left, judged, name)
    draw_sensitivity(right, sensitivity, top)
    lost = "noise" if sensitivity[0]["metric"] == "sqnr_db" else "loss"
    left.set_title("what each model reaches", loc="left", fontsize=10)
    right.set_title(f"where the {lost} comes from", loc="left", fontsize=10)
    return finish(figure, title)


def _judged(rows: Sequence[Row], metric: str | None) -> tuple[list[Row], str]:
    names = [name for row in rows for name in row.get("metrics") or {}]
    chosen = metric or (names[0] if names else "")
    judged = [row for row in rows if (row.get("metrics") or {}).get(chosen) is not None]
    if not judged:
        raise ValueError(
            "plot_models: no row has a metric; give those of lq.analysis.compare(model, calibration, test)."
        )
    return judged, chosen


def _draw_models(axis: Any, rows: Sequence[Row], metric: str) -> None:
    values = [row["metrics"][metric] for row in rows]
    exact, edges = values[0], window(values)
    for line, (row, value) in enumerate(zip(rows, values, strict=True)):
        trained = str(row["model"]).startswith("QAT")
        colour = BLACK if line == 0 else BLUE if trained else ORANGE
        marker, shown = ("o" if trained else "s"), value
        if not edges[0] <= value <= edges[1]:
            marker, shown = ("<", edges[0]) if value < edges[0] else (">", edges[1])
        axis.plot([shown], [line], marker=marker, color=colour, linestyle="", markersize=7, clip_on=False, zorder=3)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        place = {"textcoords": "offset points", "va": "center", "fontsize": 9, "bbox": box}
        axis.annotate(f"{value:.4f}", (shown, line), (9, 0), **place)
    axis.axvline(exact, color=GREY, linestyle="--", linewidth=1.2)
    axis.set_yticks(range(len(rows)), [row["model"] for row in rows], fontsize=9)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(*edges)
    axis.locator_params(axis="x", nbins=5)
    axis.set_xlabel(metric.replace("_", " "))
