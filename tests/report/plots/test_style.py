import sys

import pytest

from lq.report.plots.style import BLUE, CYCLE, MARKERS, finish, new_figure


def luminance(colour):
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_and_markers_tell_series_apart_without_colour():
    assert len(set(CYCLE)) == len(CYCLE) == len(set(MARKERS)) == len(MARKERS)
    # Grey prints: most pairs differ in brightness too, and markers do for the rest.
    values = sorted(map(luminance, CYCLE))
    assert values[-1] - values[0] > 0.4


def test_one_legend_for_all_panels():
    figure, axes = new_figure(5, 3, columns=2)
    for axis in axes:
        axis.plot([0, 1], label="a", color=BLUE)
    finish(figure, "title")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a"]
    assert figure.get_suptitle() == "title"


def test_no_legend_without_labels():
    figure, (axis,) = new_figure(5, 3)
    axis.plot([0, 1])
    assert not finish(figure, "title").legends


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-qat\[plots\]'"):
        new_figure(5, 3)
