"""Pictures for loggers that take any; which those are is decided here alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lq.report.plots import plot_learning_rate, plot_metric, plot_scale_drift, plot_sqnr

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

Row = Mapping[str, Any]


def can_draw(loggers: Sequence[Any]) -> bool:
    """Whether matplotlib is installed and one of the loggers takes pictures.

    Example:
        >>> can_draw([])
        False
    """
    return any(map(_takes_pictures, loggers)) and importlib.util.find_spec("matplotlib") is not None


def log_figure(loggers: Sequence[Any], name: str, figure: Figure, step: int) -> None:
    """Give a figure to every logger that takes pictures.

    Args:
        loggers: of any kind. Those whose ``experiment`` has ``add_figure`` (TensorBoardLogger) get the figure, those
            with ``log_image`` (WandbLogger) an array of shape (height, width, 4).
        name: under which it is shown.
        figure: from :mod:`lq.report.plots`.
        step: of the training.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> from lq.report.plots.style import new_figure
        >>> class Album(CSVLogger):
        ...     def log_image(self, key, images, step):
        ...         print(key, len(images), "at step", step)
        >>> figure, _ = new_figure(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log_figure([Album(folder), CSVLogger(folder)], "qat/sqnr", figure, step=9)
        qat/sqnr 1 at step 9
    """
    for logger in loggers:
        if _adds_figures(logger):
            logger.experiment.add_figure(name, figure, global_step=step)
        elif _takes_pictures(logger):
            logger.log_image(name, [_pixels(figure)], step=step)


def training_pictures(history: Sequence[Row]) -> Iterator[tuple[str, Figure, str]]:
    """What can be drawn of a training: its metrics, its learning rate, its scales.

    Args:
        history: rows as :func:`lq.report.history.read_history` gives them.

    Yields:
        name, figure, and what it shows in words.

    Example:
        >>> history = [{"epoch": 0, "step": 9, "qat/fake/accuracy": 0.91, "qat/lr_scale": 0.01}]
        >>> [name for name, _, _ in training_pictures(history)]
        ['accuracy', 'learning_rate']
    """
    keys = {str(key) for row in history for key in row}
    for metric in sorted({key.split("/", 2)[2] for key in keys if key.startswith(("qat/fake/", "qat/int8/"))}):
        yield metric, plot_metric(history, metric), "What the schedule did is shaded; epochs end at their number."
    if "qat/lr_scale" in keys:
        yield "learning_rate", plot_learning_rate(history), "Learning rate, as a share of the optimizer's initial one."
    if any(key.startswith("qat/scale/") for key in keys):
        words = "If a scale keeps drifting, let its observer run longer (observer_off)."
        yield "scale_drift", plot_scale_drift(history), words


def log_pictures(loggers: Sequence[Any], history: Sequence[Row], sqnr: Sequence[Row], step: int) -> None:
    """Log what is worth looking at when a training is over.

    Args:
        loggers: of any kind.
        history: of the training.
        sqnr: from :func:`lq.analysis.sqnr_per_layer`.
        step: of the training.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> class Album(CSVLogger):
        ...     def log_image(self, key, images, step):
        ...         print(key)
        >>> history = [{"epoch": 0, "step": 9, "qat/lr_scale": 0.01}]
        >>> sqnr = [{"name": "conv1", "kind": "weight", "sqnr_db": 38.2}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log_pictures([Album(folder)], history, sqnr, step=9)
        qat/learning_rate
        qat/sqnr
    """
    for name, figure, _ in training_pictures(history):
        log_figure(loggers, f"qat/{name}", figure, step)
    log_figure(loggers, "qat/sqnr", plot_sqnr(sqnr), step)


def _adds_figures(logger: Any) -> bool:
    return callable(getattr(getattr(logger, "experiment", None), "add_figure", None))


def _takes_pictures(logger: Any) -> bool:
    return _adds_figures(logger) or callable(getattr(logger, "log_image", None))


def _pixels(figure: Figure) -> np.ndarray[Any, Any]:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())
