"""A way to fit tiny modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from tests.tiny import make_trainer, quicken_deployment, train_loader, val_loader

Fit = Callable[..., L.Trainer]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """Fit a module with callbacks on the tiny data; ``loaders``, ``ckpt_path`` and Trainer arguments by name."""

    def run(module: L.LightningModule, *callbacks: Any, **kwargs: Any) -> L.Trainer:
        loaders = kwargs.pop("loaders", None) or (train_loader(), val_loader())
        ckpt_path = kwargs.pop("ckpt_path", None)
        trainer = make_trainer(tmp_path, *callbacks, **kwargs)
        trainer.fit(module, *loaders, ckpt_path=ckpt_path)
        return trainer

    return run
