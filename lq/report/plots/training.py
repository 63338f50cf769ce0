"""What happened during training: metrics, learning rate, scales, over the phases of the schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lq.report.plots.style import BLACK, BLUE, CYCLE, GREEN, GREY, MARKERS, ORANGE, WIDTH, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

PHASES = {
    0: ("float", "#f2f2f2"),
    1: ("fake quantization", "#e1eef7"),
    2: ("BatchNorm frozen", "#fdf0d5"),
    3: ("observers off", "#dff2ec"),
    4: ("BatchNorm frozen, observers off", "#f5e4ee"),
}
_SCALE = "qat/scale/"
_VERSIONS = (
    ("fp32", "FP32", BLACK, "", "--"),
    ("fake", "fake-quantized", BLUE, "o", "-"),
    ("int8", "int8", ORANGE, "s", "-"),
)


def plot_metric(history: Sequence[Row], metric: str = "accuracy") -> Figure:
    """A metric of FP32, fake-quantized and int8 model over the epochs, phases of the schedule shaded.

    Args:
        history: rows of a training's log with "epoch" and any of ``qat/<version>/<metric>`` and "qat/phase", as
            :func:`lq.report.history.read_history` gives them.
        metric: name of the metric. One that the module itself logs is that of the fake-quantized model.

    Returns:
        the figure.

    Raises:
        ValueError: if no row has the metric.

    Example:
        >>> history = [{"epoch": 0, "qat/fake/accuracy": 0.91, "qat/phase": 1}, {"epoch": 1, "qat/fake/accuracy": 0.92}]
        >>> plot_metric(history).axes[0].get_ylabel()
        'accuracy'
    """
    figure, (axis,) = new_figure(WIDTH, 3.8)
    drawn = False
    for version, label, colour, marker, line in _VERSIONS:
        points = _points(history, f"qat/{version}/{metric}")
        if version == "fake":  # the comparison at the end logs the last one again, under this name
            points = sorted({**dict(_own_points(history, metric)), **dict(points)}.items())
        if version == "fp32" and points:  # measured once, before QAT
            value = points[0][1]
            axis.axhline(value, color=colour, linestyle=line, linewidth=1.4, label=f"{label}, {value:.4f}")
        elif points:
            label = f"{label}, last {points[-1][1]:.4f}"
            style = {"color": colour, "marker": marker, "linestyle": line, "label": label, "clip_on": False}
            axis.plot(*zip(*points, strict=True), **style, zorder=3)
        drawn = drawn or bool(points)
    if not drawn:
        known = sorted({key for row in history for key in row if str(key).startswith("qat/")})
        raise ValueError(f"plot_metric: no row has qat/<version>/{metric}; found {known or 'no qat/ columns at all'}.")
    last = max(float(row["epoch"]) + 1 for row in history if row.get("epoch") is not None)
    _shade(axis, _spans(history), last)
    axis.set_xlim(0, last)
    axis.locator_params(axis="x", integer=True)
    axis.set_xlabel("epochs")
    axis.set_ylabel(metric.replace("_", " "))
    return finish(figure, f"{metric.replace('_', ' ')} on the validation data")


def plot_learning_rate(history: Sequence[Row]) -> Figure:
    """Learning rate over the steps, as a share of the optimizer's initial one, on a logarithmic axis.

    Args:
        history: rows with "step" and "qat/lr_scale".

    Returns:
        the figure.

    Raises:
        ValueError: if no row has a learning rate.

    Example:
        >>> plot_learning_rate([{"step": 9, "qat/lr_scale": 0.01}]).axes[0].get_yscale()
        'log'
    """
    points = _points(history, "qat/lr_scale", x="step")
    if not points:
        raise ValueError("plot_learning_rate: no row has qat/lr_scale; QATCallback logs it unless schedule.lr is null.")
    figure, (axis,) = new_figure(WIDTH, 3.2)
    axis.semilogy(*zip(*points, strict=True), color=GREEN, marker="o", markersize=4)
    axis.locator_params(axis="x", integer=True)
    axis.set_xlabel("steps")
    axis.set_ylabel("share of the initial rate")
    return finish(figure, "learning rate of QAT")


def plot_scale_drift(history: Sequence[Row], top: int = 6) -> Figure:
    """Scales of the activations over the steps, relative to where each began; those that moved most are named.

    Args:
        history: rows with "step" and ``qat/scale/<tensor>``, e.g. from :func:`lq.analysis.activation_scales`.
        top: how many tensors to name; the others are grey.

    Returns:
        the figure.

    Raises:
        ValueError: if no row has a scale.

    Example:
        >>> history = [{"step": 0, "qat/scale/conv1": 0.02}, {"step": 10, "qat/scale/conv1": 0.03}]
        >>> plot_scale_drift(history).axes[0].get_ylabel()
        'scale, relative to its first'
    """
    names = sorted({key for row in history for key in row if str(key).startswith(_SCALE)})
    series = {name.removeprefix(_SCALE): _relative(_points(history, name, x="step")) for name in names}
    series = {name: points for name, points in series.items() if points}
    if not series:
        raise ValueError(f"plot_scale_drift: no row has a column that starts with {_SCALE!r}.")
    figure, (axis,) = new_figure(WIDTH, 3.8)
    ranked = sorted(series, key=lambda name: -abs(math.log(series[name][-1][1])))
    for name in reversed(ranked[top:]):
        axis.plot(*zip(*series[name], strict=True), color="#c4c4c4", linewidth=0.9)
    for name, colour, marker in zip(ranked[:top], CYCLE, MARKERS, strict=False):
        axis.plot(*zip(*series[name], strict=True), color=colour, marker=marker, markersize=4, label=name)
    axis.axhline(1, color=GREY, linewidth=1)
    axis.locator_params(axis="x", integer=True)
    axis.set_xlabel("steps")
    axis.set_ylabel("scale, relative to its first")
    others = f" ({len(series) - top} others in grey)" if len(series) > top else ""
    return finish(figure, f"drift of activation scales{others}")


def _points(history: Sequence[Row], column: str, x: str = "epoch") -> list[tuple[float, float]]:
    """Where and what, for rows that have both; what an epoch logs stands at its end."""
    shift = 1 if x == "epoch" else 0
    return [
        (float(row[x]) + shift, float(row[column]))
        for row in history
        if row.get(x) is not None and row.get(column) is not None
    ]


def _own_points(history: Sequence[Row], metric: str) -> list[tuple[float, float]]:
    """What the module itself logs: since QAT has started, that is of the fake-quantized model."""
    started = [float(row["epoch"]) for row in history if row.get("epoch") is not None and row.get("qat/phase")]
    return [(x, y) for x, y in _points(history, metric) if started and x > min(started)]


def _relative(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    positive = [(x, y) for x, y in points if y > 0]
    return [(x, y / positive[0][1]) for x, y in positive]


def _spans(history: Sequence[Row]) -> list[tuple[float, int]]:
    """Phases, and the first epoch logged with each."""
    found: list[tuple[float, int]] = []
    for row in history:
        if row.get("epoch") is not None and row.get("qat/phase") is not None:
            epoch, phase = float(row["epoch"]), int(row["qat/phase"])
            if not found or found[-1][1] != phase:
                found.append((epoch, phase))
    return found


def _shade(axis: Any, spans: Sequence[tuple[float, int]], last: float) -> None:
    ends = [*(start for start, _ in spans[1:]), last][: len(spans)]
    for (start, phase), end in zip(spans, ends, strict=True):
        name, colour = PHASES.get(phase, (f"phase {phase}", "#eeeeee"))
        axis.axvspan(start, end, color=colour, linewidth=0, zorder=0, label=name)
