"""What a network loses with fewer bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lq.report.plots.style import BLUE, GREY, ORANGE, WIDTH, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]


def plot_frontier(rows: Sequence[Row], loss: str, activations: Sequence[Row] = ()) -> Figure:
    """The loss against the size, or the latency if that is limited, of the frontier, uniform bits and the choice.

    A second panel has the loss against the bits of activations.

    Args:
        rows: from :class:`lq.analysis.bits.BitChoice`; those without a name are the frontier.
        loss: what the losses are.
        activations: rows of the activations, if their bits were chosen.

    Returns:
        the figure.

    Raises:
        ValueError: if there is no row.

    Example:
        >>> rows = [{"name": "chosen", "size_mb": 0.4, "effective_bits": 4.2, "expected": 2e-3, "measured": 3e-3}]
        >>> plot_frontier(rows, "KL divergence").axes[0].get_ylabel()
        'KL divergence'
    """
    if not rows:
        raise ValueError("plot_frontier: no rows; give those of lq.analysis.bits.choose_bits(...).")
    figure, axes = new_figure(WIDTH, 7.2 if activations else 3.6, rows=2 if activations else 1)
    timed = rows[0].get("latency_ms") is not None
    _draw(axes[0], rows, "latency_ms" if timed else "size_mb")
    axes[0].set_xlabel("latency in ms" if timed else "size in MB")
    if activations:
        _draw(axes[1], activations, "bits")
        axes[0].set_title("weights")
        axes[1].set_title("activations")
        axes[1].set_xlabel("bits per activation")
    for axis in axes:
        axis.set_ylabel(loss)
    against = "size and bits" if activations else "latency" if timed else "size"
    return finish(figure, f"{loss} against {against}")


def _draw(axis: Any, rows: Sequence[Row], cost: str) -> None:
    best = [row for row in rows if not row["name"]]
    if best:
        costs, losses = [row[cost] for row in best], [row["expected"] for row in best]
        axis.plot(costs, losses, color=GREY, marker=".", label="best choice, expected")
    for row in rows:
        if row["name"] and row["measured"] is not None:
            chosen = row["name"] == "chosen"
            point = {"color": ORANGE, "marker": "D"} if chosen else {"color": BLUE, "marker": "o"}
            label = "chosen, measured" if chosen else "the same bits everywhere, measured"
            place = row[cost], row["measured"]
            axis.scatter(*place, s=60, zorder=3, label=label, **point)
            # Below the frontier there is nothing.
            at: Any = ((-6, -12), "right") if chosen else ((6, 6), "left")
            axis.annotate(row["name"], place, at[0], textcoords="offset points", fontsize=9, ha=at[1])
    if any(row["expected"] > 0 for row in rows):
        axis.set_yscale("log")
