"""What the subcommands are tried on."""

from __future__ import annotations

from pathlib import Path

import pytest

from lq.callback import QATCallback
from tests.tiny import Tiny, keeper, make_trainer, qat, quicken_deployment, train_loader, val_loader


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, QATCallback]:
    """A checkpoint of a QAT run, and its callback."""
    callback, checkpoint = qat(), keeper(tmp_path / "kept")
    make_trainer(tmp_path, callback, checkpoint, max_epochs=1).fit(Tiny(), train_loader(), val_loader())
    return Path(checkpoint.last_model_path), callback
