from itertools import pairwise

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lq.report.plots.layers import draw_sensitivity, plot_sensitivity, plot_sqnr
from lq.report.plots.style import RED


def sqnr_rows(layers=3):
    rows = []
    for i in range(layers):
        rows.append({"name": f"conv{i}", "kind": "weight", "sqnr_db": 30.0 + i, "worst_channel_db": 20.0})
        rows.append(
            {"name": f"conv{i}", "kind": "activation", "sqnr_db": 40.0, "accumulated_db": 25.0 - i, "int8_db": None}
        )
    return [*rows, {"name": "output", "kind": "output", "sqnr_db": None, "accumulated_db": 21.5}]


def sensitivity_rows(**changes):
    row = {"direction": "one", "metric": "accuracy", "value": 0.9, "share": None}
    losses = {"a": 0.01, "b": 0.05, "c": -0.002}
    return [{**row, "layer": layer, "loss": loss, **changes} for layer, loss in losses.items()]


def test_every_layer_has_a_line_and_every_figure_its_place():
    figure = plot_sqnr(sqnr_rows())
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["conv0", "conv1", "conv2"]
    series = {line.get_label(): list(line.get_xdata()) for line in axis.lines}
    assert series["weight alone"] == [30, 31, 32]
    assert series["activation, all before it quantized"] == [25, 24, 23]
    assert "the same in int8" not in series
    assert series["output of the model, 21.5 dB"][0] == 21.5
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first layer is at the top


def test_the_picture_grows_with_the_model():
    assert plot_sqnr(sqnr_rows(60)).get_figheight() > 2 * plot_sqnr(sqnr_rows(10)).get_figheight()


def test_infinite_ratios_are_left_out():
    rows = [{"name": "fc", "kind": "activation", "sqnr_db": float("inf"), "accumulated_db": 30.0}]
    assert [line.get_label() for line in plot_sqnr(rows).axes[0].lines] == ["activation, all before it quantized"]


def test_the_most_sensitive_layer_is_on_top_and_the_excluded_one_is_marked():
    figure = plot_sensitivity(sensitivity_rows(), excluded=["a"])
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["b", "a", "c"]
    bars = [patch for patch in axis.patches if patch.get_width()]
    assert [bar.get_width() for bar in bars] == [0.05, 0.01, -0.002]
    assert [bar.get_hatch() for bar in bars] == [None, "///", None]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["proposed to stay in float"]
    assert to_hex(bars[1].get_facecolor()) == RED.lower()


def test_shares_stand_at_their_bars_and_top_cuts():
    figure = plot_sensitivity(sensitivity_rows(share=0.25), top=2)
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == ["33%", "33%"]
    assert figure.get_suptitle() == "the 2 most sensitive layers, with shares of the loss"


@pytest.mark.parametrize("size", [1.0, 3e-3, 1e-6])
def test_figures_at_the_axis_do_not_run_into_each_other(size):
    figure = Figure(figsize=(4.5, 3))
    axis = figure.subplots()
    draw_sensitivity(axis, [{**row, "loss": row["loss"] * size} for row in sensitivity_rows()])
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
    assert len(boxes) > 2
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"direction": "all_but_one"}, "accuracy regained by leaving only this layer in float"),
        ({"metric": "sqnr_db"}, "noise power over signal power with only this layer quantized"),
        ({"metric": "sqnr_db", "direction": "all_but_one"}, "noise power over signal power that it adds"),
    ],
)
def test_the_axis_says_what_was_measured(changes, label):
    assert plot_sensitivity(sensitivity_rows(**changes)).axes[0].get_xlabel() == label


@pytest.mark.parametrize("plot", [plot_sqnr, plot_sensitivity])
def test_no_rows_are_refused(plot):
    with pytest.raises(ValueError, match=r"no rows; give those of lq.analysis"):
        plot([])
