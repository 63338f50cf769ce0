from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest

from lq.callback.checkpoint_to_load import checkpoint_to_load
from tests.tiny import WEIGHTS_ONLY, Tiny, make_trainer, train_loader, val_loader


class Looks(L.Callback):
    """Asks in setup."""

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        self.found = checkpoint_to_load(trainer, "the test")


@pytest.mark.parametrize("weights_only", [{}, WEIGHTS_ONLY], ids=["all", "weights only"])
def test_it_is_known_before_it_is_loaded(tmp_path: Any, weights_only: dict[str, Any]) -> None:
    looks = Looks()
    trainer = make_trainer(tmp_path, looks, max_epochs=1)
    trainer.fit(Tiny(), train_loader(), val_loader())
    assert looks.found == {}
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    trainer = make_trainer(tmp_path, looks, max_epochs=1)
    trainer.fit(Tiny(), train_loader(), val_loader(), ckpt_path=tmp_path / "kept.ckpt", **weights_only)
    assert looks.found["global_step"] == 3


def test_where_it_cannot_be_known_that_is_said() -> None:
    with pytest.warns(UserWarning, match="the test cannot tell which checkpoint"):
        assert checkpoint_to_load(SimpleNamespace(), "the test") == {}  # type: ignore[arg-type]
