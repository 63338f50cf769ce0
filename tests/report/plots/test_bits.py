import pytest

from lq.report.plots.bits import plot_frontier

ROWS = [
    {"name": "", "size_mb": 0.2, "effective_bits": 2.0, "expected": 1.2, "measured": None},
    {"name": "all 2 bits", "size_mb": 0.2, "effective_bits": 2.0, "expected": 1.2, "measured": 2.25},
    {"name": "chosen", "size_mb": 0.4, "effective_bits": 4.2, "expected": 0.002, "measured": 0.003},
]


def test_points_stand_where_their_figures_are():
    (axis,) = plot_frontier(ROWS, "KL divergence").axes
    assert {tuple(points.get_offsets()[0]) for points in axis.collections} == {(0.2, 2.25), (0.4, 0.003)}
    assert [text.get_text() for text in axis.texts] == ["all 2 bits", "chosen"]
    assert list(axis.lines[0].get_xdata()) == [0.2]
    assert axis.get_yscale() == "log"


def test_activations_have_a_panel_of_their_own():
    activations = [
        {"name": "", "bits": 2.0, "expected": 0.5, "measured": None},
        {"name": "chosen", "bits": 3.9, "expected": 0.02, "measured": 0.03},
    ]
    weights, panel = plot_frontier(ROWS, "KL divergence", activations).axes
    assert [tuple(points.get_offsets()[0]) for points in panel.collections] == [(3.9, 0.03)]
    assert (weights.get_xlabel(), panel.get_xlabel()) == ("size in MB", "bits per activation")


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="plot_frontier: no rows"):
        plot_frontier([], "KL divergence")
