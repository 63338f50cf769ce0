import pytest

from lq.report.plots.tradeoff import plot_tradeoff

ROWS = [
    {"model": "FP32", "metrics": {"accuracy": 0.92, "f1": 0.9}, "size_mb": 14.0, "latency_ms": 9.0},
    {"model": "fake-quantized", "metrics": {"accuracy": 0.91}},
    {"model": "int8", "metrics": {"accuracy": 0.915}, "size_mb": 3.6, "latency_ms": None},
]


def points(axis):
    return {c.get_label(): tuple(c.get_offsets()[0]) for c in axis.collections}


def test_models_stand_where_their_figures_are():
    latency, size = plot_tradeoff(ROWS).axes
    assert points(latency) == {"FP32": (9.0, 0.92)}
    assert points(size) == {"FP32": (14.0, 0.92), "int8": (3.6, 0.915)}
    assert size.get_xlim()[0] == 0
    assert size.get_xlim()[1] > 14


def test_a_model_has_the_same_look_in_both_panels():
    rows = [{**row, "size_mb": 1.0, "latency_ms": 2.0} for row in ROWS]
    left, right = plot_tradeoff(rows).axes
    for a, b in zip(left.collections, right.collections, strict=True):
        assert (a.get_facecolor() == b.get_facecolor()).all()


def test_what_lies_far_below_stands_on_the_edge_and_in_the_legend():
    broken = [
        {"model": name, "metrics": {"accuracy": value}, "size_mb": 3.6} for name, value in (("a", 0.1), ("b", 0.2))
    ]
    _, size = plot_tradeoff([*ROWS, *broken]).axes
    shown = points(size)
    assert shown["a (\u2193 0.1000)"] == shown["b (\u2193 0.2000)"] == (3.6, size.get_ylim()[0])
    assert not size.texts


def test_another_metric_can_be_chosen():
    _, size = plot_tradeoff(ROWS, "f1").axes
    assert points(size) == {"FP32": (14.0, 0.9)}


@pytest.mark.parametrize("rows", [[], [ROWS[1]], [{"model": "x", "size_mb": 3.0}]])
def test_rows_without_both_are_refused(rows):
    with pytest.raises(ValueError, match="no row has a metric together with"):
        plot_tradeoff(rows)
