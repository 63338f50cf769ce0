import pytest

from lq.config.schedule import Phase
from lq.report.plots.training import plot_learning_rate, plot_metric, plot_scale_drift

HISTORY = [
    {"epoch": 0, "step": 9, "train/loss": 1.0},
    {"epoch": 0, "step": 10, "qat/fp32/accuracy": 0.9, "qat/fake/accuracy": 0.8},
    {"epoch": 0, "step": 10, "qat/phase": 1, "qat/lr_scale": 0.01, "qat/scale/a": 0.1, "qat/scale/b": 0.2},
    {"epoch": 1, "step": 20, "qat/fake/accuracy": 0.85, "qat/int8/accuracy": 0.84},
    {"epoch": 1, "step": 20, "qat/phase": 4, "qat/lr_scale": 0.001, "qat/scale/a": 0.2, "qat/scale/b": 0.18},
]


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def shades(figure):
    return {patch.get_label(): (patch.get_x(), patch.get_x() + patch.get_width()) for patch in figure.axes[0].patches}


def test_versions_stand_at_the_end_of_their_epochs_and_phases_are_shaded():
    figure = plot_metric(HISTORY)
    found = lines(figure)
    assert list(found["fake-quantized, last 0.8500"].get_xdata()) == [1, 2]
    assert list(found["int8, last 0.8400"].get_xdata()) == [2]
    assert found["FP32, 0.9000"].get_ydata()[0] == 0.9
    assert shades(figure) == {"fake quantization": (0, 1), "BatchNorm frozen, observers off": (1, 2)}


def test_a_figure_of_the_module_is_a_line_over_all_epochs_of_qat():
    rows = [{"epoch": epoch, "step": 10 * epoch, "val_loss": 1 / (1 + epoch)} for epoch in range(4)]
    rows += [{"epoch": epoch, "step": 10 * epoch, "qat/phase": float(epoch > 0)} for epoch in range(4)]
    end = {"epoch": 3, "step": 31, "qat/fake/val_loss": 0.2, "qat/int8/val_loss": 0.21}  # of the comparison at the end
    line = lines(plot_metric([*rows, end], "val_loss"))["fake-quantized, last 0.2000"]
    assert list(line.get_xdata()) == [2, 3, 4]
    assert list(line.get_ydata()) == pytest.approx([1 / 2, 1 / 3, 0.2])


def test_every_phase_of_the_schedule_has_a_name():
    flags = [(fake, observer, freeze) for fake in (0, 1) for observer in (0, 1) for freeze in (0, 1)]
    from lq.report.plots.training import PHASES

    assert {Phase(bool(a), bool(b), bool(c), None).index for a, b, c in flags} <= set(PHASES)


def test_another_metric_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"no row has qat/<version>/f1; found \['qat/fake/accuracy'"):
        plot_metric(HISTORY, "f1")


def test_learning_rate_over_steps():
    (line,) = plot_learning_rate(HISTORY).axes[0].lines
    assert list(line.get_xdata()) == [10, 20]
    assert list(line.get_ydata()) == [0.01, 0.001]
    with pytest.raises(ValueError, match=r"no row has qat/lr_scale"):
        plot_learning_rate(HISTORY[:1])


def test_scales_are_relative_and_those_that_moved_most_are_named():
    figure = plot_scale_drift(HISTORY, top=1)
    assert list(lines(figure)["a"].get_ydata()) == [1, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a"]
    assert figure.get_suptitle() == "drift of activation scales (1 others in grey)"
    with pytest.raises(ValueError, match=r"no row has a column that starts with 'qat/scale/'"):
        plot_scale_drift(HISTORY[:1])
