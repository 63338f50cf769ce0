"""Pictures at the end of a fit: for loggers that take them, drawn of the deployed model, never in the way."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.loggers.logger import Logger

from tests.callback.conftest import Fit
from tests.tiny import Tiny, qat


class Images(Logger):
    """A logger that keeps the names of its pictures."""

    name, version = "images", 0

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.broken, self.keys = broken, list[str]()

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        if self.broken:
            raise ConnectionError("the server is away")
        self.keys.append(key)


def test_pictures_reach_a_logger_that_takes_them(fit: Fit) -> None:
    pytest.importorskip("matplotlib")
    logger = Images()
    fit(Tiny(), qat(), max_epochs=2, logger=logger)
    assert logger.keys == ["qat/accuracy", "qat/learning_rate", "qat/scale_drift", "qat/sqnr"]


def test_other_loggers_cost_nothing(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lq.callback.deployment.sqnr_per_layer", None)
    fit(Tiny(), qat(), max_epochs=1)


def test_a_server_that_is_away_costs_the_pictures_only(fit: Fit) -> None:
    pytest.importorskip("matplotlib")
    callback = qat()
    with pytest.warns(UserWarning, match="lq: the pictures could not be logged: the server is away"):
        fit(Tiny(), callback, max_epochs=1, logger=Images(broken=True))
    assert callback.deployment is not None
    assert callback.deployment.directory is not None
