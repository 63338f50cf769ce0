"""What quantization does to each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lq.report.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, WIDTH, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

_LINE = 0.2  # inches for each layer's line
_SERIES = (
    ("weight", "sqnr_db", "weight alone", BLUE, "s"),
    ("weight", "worst_channel_db", "its worst channel", PURPLE, "x"),
    ("activation", "sqnr_db", "activation alone", ORANGE, "o"),
    ("activation", "accumulated_db", "activation, all before it quantized", GREEN, "D"),
    ("activation", "int8_db", "the same in int8", RED, "+"),
)


def plot_sqnr(rows: Sequence[Row], title: str = "SQNR of every weight and activation") -> Figure:
    """SQNR per layer, a line each, in execution order from the top.

    Args:
        rows: from :func:`lq.analysis.sqnr_per_layer`.
        title: above the plot.

    Returns:
        the figure, as tall as there are layers.

    Raises:
        ValueError: if there are no rows.

    Example:
        >>> row = {"name": "conv1", "kind": "weight", "sqnr_db": 38.2}
        >>> figure = plot_sqnr([row, {"name": "conv1", "kind": "activation", "sqnr_db": 41.0, "accumulated_db": 35.5}])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['conv1']
    """
    tensors = [row for row in rows if row["kind"] in ("weight", "activation")]
    if not tensors:
        raise ValueError("plot_sqnr: no rows; give those of lq.analysis.sqnr_per_layer(prepared, batches).")
    names = list(dict.fromkeys(row["name"] for row in tensors))
    position = {name: index for index, name in enumerate(names)}
    figure, (axis,) = new_figure(WIDTH, 1.5 + _LINE * len(names))
    for kind, column, label, colour, marker in _SERIES:
        found = [r for r in tensors if r["kind"] == kind and _is_finite(r.get(column))]
        if found:
            x, y = [row[column] for row in found], [position[row["name"]] for row in found]
            line = "-" if column == "accumulated_db" else ""
            axis.plot(x, y, marker=marker, linestyle=line, linewidth=1, color=colour, label=label, markersize=5)
    output = next((row for row in rows if row["kind"] == "output"), None)
    if output is not None and _is_finite(output.get("accumulated_db")):
        value = output["accumulated_db"]
        axis.axvline(value, color=GREY, linestyle="--", label=f"output of the model, {value:.1f} dB")
    _name_lines(axis, names)
    axis.set_xlabel("SQNR in dB (more is better)")
    return finish(figure, title)


def plot_sensitivity(rows: Sequence[Row], top: int | None = None, excluded: Sequence[str] = ()) -> Figure:
    """Bars of what quantizing each layer costs, the most sensitive first.

    Args:
        rows: from :func:`lq.analysis.sensitivity`.
        top: how many layers to show; None for all.
        excluded: layers that are to stay float, shown in another colour and hatched.

    Returns:
        the figure.

    Raises:
        ValueError: if there are no rows.

    Example:
        >>> row = {"layer": "fc", "direction": "one", "metric": "accuracy", "loss": 0.02, "value": 0.9, "share": 0.5}
        >>> plot_sensitivity([row]).axes[0].get_xlabel()
        'loss of accuracy with only this layer quantized'
    """
    count = len(rows[:top])
    figure, (axis,) = new_figure(WIDTH, 1.3 + _LINE * count)
    draw_sensitivity(axis, rows, top, excluded)
    which = f"the {count} most sensitive layers" if count < len(rows) else "sensitivity of all layers"
    return finish(figure, f"{which}, with shares of the loss")


def draw_sensitivity(axis: Any, rows: Sequence[Row], top: int | None = None, excluded: Sequence[str] = ()) -> None:
    """The bars of :func:`plot_sensitivity`.

    Raises:
        ValueError: if there are no rows.

    Example:
        >>> row = {"layer": "fc", "direction": "one", "metric": "accuracy", "loss": 0.02, "share": 0.5}
        >>> figure, (axis,) = new_figure(4, 2)
        >>> draw_sensitivity(axis, [row, {**row, "layer": "conv1", "loss": 0.03}])
        >>> [label.get_text() for label in axis.get_yticklabels()], [text.get_text() for text in axis.texts]
        (['conv1', 'fc'], ['50%', '50%'])
    """
    if not rows:
        raise ValueError("no rows; give those of lq.analysis.sensitivity(prepared, batches).")
    shares = shares_of_loss(rows)
    chosen = sorted(rows, key=lambda row: -row["loss"])[:top]
    values = [row["loss"] for row in chosen]
    bars = axis.barh(range(len(chosen)), values, color=BLUE, height=0.72, zorder=2)
    for bar, row in zip(bars, chosen, strict=True):
        if row["layer"] in excluded:
            bar.set(facecolor=RED, hatch="///", edgecolor="white", linewidth=0)
    if set(excluded) & {row["layer"] for row in chosen}:
        axis.barh(0, 0, color=RED, hatch="///", edgecolor="white", label="proposed to stay in float")
    for index, row in enumerate(chosen):
        share = shares[row["layer"]]
        if share is not None and share >= 0.005:
            axis.annotate(
                f"{share:.0%}", (max(row["loss"], 0), index), (4, 0), textcoords="offset points", va="center",
                fontsize=8.5, color="#333333",
            )  # fmt: skip
    _name_lines(axis, [row["layer"] for row in chosen])
    axis.margins(x=0.12)
    axis.ticklabel_format(axis="x", scilimits=(-3, 4))  # digits of small numbers would run into each other
    axis.set_xlabel(_loss_of(chosen[0]), loc="left")  # the power of ten stands at the right


def shares_of_loss(rows: Sequence[Row]) -> dict[str, float | None]:
    """Each layer's share of the loss, so that they do not add up to more than all of it.

    Measured one at a time they may: without its worst layer a model has little left to lose.

    Example:
        >>> row = {"layer": "a", "direction": "all_but_one", "loss": 0.08, "share": 0.8}
        >>> shares_of_loss([row, {**row, "layer": "b"}])
        {'a': 0.5, 'b': 0.5}
    """
    total = sum(max(row["share"] or 0.0, 0.0) for row in rows)
    factor = 1 / total if total > 1 or (total > 0 and rows[0]["direction"] == "one") else 1.0
    return {row["layer"]: None if row.get("share") is None else row["share"] * factor for row in rows}


def _loss_of(row: Row) -> str:
    if row["metric"] == "sqnr_db":
        what = "noise power over signal power"
        return f"{what} with only this layer quantized" if row["direction"] == "one" else f"{what} that it adds"
    metric = str(row["metric"]).replace("_", " ")
    if row["direction"] == "one":
        return f"loss of {metric} with only this layer quantized"
    return f"{metric} regained by leaving only this layer in float"


def _name_lines(axis: Any, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names, fontsize=8.5)
    axis.set_ylim(len(names) - 0.4, -0.6)


def _is_finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
