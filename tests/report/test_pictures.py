import sys
from types import SimpleNamespace

import pytest

from lq.report.pictures import can_draw, log_figure, log_pictures, training_pictures
from lq.report.plots import plot_learning_rate
from tests.report.plots.test_training import HISTORY

SQNR = [{"name": "conv1", "kind": "weight", "sqnr_db": 38.2}]


class Board:
    """As TensorBoardLogger."""

    def __init__(self):
        self.figures = {}
        self.experiment = SimpleNamespace(add_figure=self._add)

    def _add(self, tag, figure, global_step):
        self.figures[tag] = (type(figure).__name__, global_step)


class Images:
    """As WandbLogger."""

    def __init__(self):
        self.images = {}

    def log_image(self, key, images, step=None):
        self.images[key] = (images, step)


PLAIN = SimpleNamespace(experiment=SimpleNamespace(log_metrics=None))


def test_loggers_are_known_by_what_they_can_do(monkeypatch):
    assert can_draw([PLAIN, Board()])
    assert can_draw([Images()])
    assert not can_draw([PLAIN])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not can_draw([Board()])


def test_each_logger_gets_the_figure_in_its_form():
    board, images, figure = Board(), Images(), plot_learning_rate(HISTORY)
    log_figure([PLAIN, board, images], "lr", figure, 7)
    assert board.figures == {"lr": ("Figure", 7)}
    ([pixels], step) = images.images["lr"]
    width, height = figure.get_size_inches() * figure.dpi
    assert pixels.shape == (int(height), int(width), 4)
    assert pixels.min() < 100
    assert pixels.max() == 255
    assert step == 7


def test_pictures_of_a_training_are_those_that_there_are_rows_for():
    assert [name for name, _, _ in training_pictures(HISTORY)] == ["accuracy", "learning_rate", "scale_drift"]
    assert [name for name, _, _ in training_pictures(HISTORY[:2])] == ["accuracy"]
    assert list(training_pictures([])) == []


def test_all_that_is_worth_looking_at():
    board = Board()
    log_pictures([board], HISTORY, SQNR, 3)
    assert board.figures.keys() == {"qat/accuracy", "qat/learning_rate", "qat/scale_drift", "qat/sqnr"}


def test_tensorboard_itself(tmp_path):
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    log_pictures([logger], HISTORY, SQNR, 3)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["images"]) == {"qat/accuracy", "qat/learning_rate", "qat/scale_drift", "qat/sqnr"}
    assert "matplotlib" in sys.modules
