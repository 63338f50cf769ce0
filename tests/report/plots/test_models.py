import pytest

from lq.report.plots.models import plot_models, plot_overview

ROWS = [
    {"model": "FP32", "metrics": {"accuracy": 0.916, "f1": 0.9}, "size_mb": 3.0},
    {"model": "PTQ per-tensor MinMax", "metrics": {"accuracy": 0.1}},
    {"model": "PTQ per-channel histogram", "metrics": {"accuracy": 0.82}},
    {"model": "not judged"},
    {"model": "QAT int8, onnx", "metrics": {"accuracy": 0.917}},
]
HARM = {"direction": "all_but_one", "metric": "sqnr_db"}
SENSITIVITY = [{"layer": f"layer{i}", "loss": i / 100, "share": i / 45, **HARM} for i in range(10)]


def points(axis):
    return {line.get_ydata()[0]: (line.get_xdata()[0], line.get_marker()) for line in axis.lines[:-1]}


def test_models_stand_at_their_figures_and_what_is_far_off_at_the_edge():
    (axis,) = plot_models(ROWS).axes
    low, _ = axis.get_xlim()
    assert points(axis) == {0: (0.916, "s"), 1: (low, "<"), 2: (0.82, "s"), 3: (0.917, "o")}
    assert low > 0.7
    assert [text.get_text() for text in axis.texts] == ["0.9160", "0.1000", "0.8200", "0.9170"]
    assert list(axis.lines[-1].get_xdata()) == [0.916, 0.916]


def test_equal_models_have_an_axis_too():
    low, high = plot_models([ROWS[0], {**ROWS[0], "model": "fake-quantized"}]).axes[0].get_xlim()
    assert low < 0.916 < high


def test_another_metric_can_be_chosen():
    assert plot_models(ROWS, "f1").axes[0].get_xlabel() == "f1"


def test_the_overview_joins_the_result_and_the_worst_layers():
    figure = plot_overview(ROWS, SENSITIVITY, "Net", top=3)
    left, right = figure.axes
    assert len(left.texts) == 4
    assert [label.get_text() for label in right.get_yticklabels()] == ["layer9", "layer8", "layer7"]
    assert figure.get_suptitle() == "Net"


@pytest.mark.parametrize("rows", [[], [{"model": "x", "size_mb": 3.0}]])
def test_rows_without_a_metric_are_refused(rows):
    with pytest.raises(ValueError, match="plot_models: no row has a metric"):
        plot_models(rows)


def test_an_overview_without_layers_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        plot_overview(ROWS, [], "Net")
