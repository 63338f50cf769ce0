"""Which figure counts, and which way it is better."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lq.callback.monitors import counting_figure, higher_is_better


def _trainer(*callbacks: Any) -> L.Trainer:
    return L.Trainer(accelerator="cpu", logger=False, callbacks=list(callbacks))


@pytest.mark.parametrize("keepers", [[], [ModelCheckpoint()], [ModelCheckpoint(monitor="qat/fake/f1", mode="max")]])
def test_without_a_figure_there_is_no_better_way(keepers: list[Any]) -> None:
    trainer = _trainer(*keepers)
    assert counting_figure(trainer, None) is None
    assert higher_is_better(trainer, None, None) is None


def test_the_mode_that_was_asked_for_wins() -> None:
    trainer = _trainer(ModelCheckpoint(monitor="loss"), ModelCheckpoint(monitor="acc", mode="max"))
    assert higher_is_better(trainer, None, None) is False, "that of the first ModelCheckpoint"
    assert higher_is_better(trainer, "acc", None) is True
    assert higher_is_better(trainer, "acc", "min") is False
    assert higher_is_better(trainer, "f1", None) is None
