import pytest
import torch

from lq.report.plots.tensors import plot_clipping


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_affine_and_symmetric_ranges_are_drawn_where_they_are():
    figure = plot_clipping(torch.tensor([-1.0, 0.0, 3.0]), name="conv1")
    assert labels(figure) == ["affine  [-1, 3]", "symmetric  [-3, 3]"]
    (axis,) = figure.axes
    assert sorted({line.get_xdata()[0] for line in axis.lines}) == [-3, -1, 3]
    assert axis.get_xlim()[0] < -3
    assert figure.get_suptitle() == "conv1: clipping ranges"


def test_all_values_are_counted():
    (axis,) = plot_clipping(torch.randn(1000)).axes
    assert sum(patch.get_height() for patch in axis.patches if patch.get_facecolor()[:3] != (1, 1, 1)) >= 1000


def test_other_ranges_can_be_given():
    assert labels(plot_clipping(torch.randn(100), {"99.9 %": (-2.0, 2.5)})) == ["99.9 %  [-2, 2.5]"]


@pytest.mark.parametrize("values", [torch.tensor([]), torch.tensor([1.0, float("nan")])])
def test_values_that_cannot_be_drawn_are_refused(values):
    with pytest.raises(ValueError, match="empty or holds NaN or infinity"):
        plot_clipping(values)


def test_too_many_ranges_are_refused():
    with pytest.raises(ValueError, match="6 ranges cannot be told apart; give at most 5"):
        plot_clipping(torch.randn(10), {str(i): (-1.0, 1.0) for i in range(6)})
