"""Which figure counts, and which way it is better."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lq.callback import QATCallback
from lq.callback.distillation import Distillation
from lq.callback.monitors import counting_figure, higher_is_better
from tests.callback.conftest import Fit
from tests.tiny import Tiny


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


@pytest.mark.parametrize(
    ("monitor", "known"),
    [
        ("qat/distillation", [True, True]),
        ("qat/distillation/4", [True, True]),
        ("qat/ranges/scale_drift_max", [False, True]),  # between two epochs
        ("qat/lr_scale", [True, True]),
        ("qat/int8/val_loss", [False, True]),
    ],
)
def test_figures_of_the_end_of_an_epoch_can_be_monitored(
    fit: Fit, tmp_path: Path, monitor: str, known: list[bool]
) -> None:
    keeper = ModelCheckpoint(tmp_path / "kept", monitor=monitor, save_top_k=-1)
    fit(Tiny(), QATCallback(distill=Distillation(layers=("4", "4")), int8_every_n_epochs=2), keeper, max_epochs=2)
    assert [math.isfinite(score) for score in keeper.best_k_models.values()] == known


@pytest.mark.parametrize("monitor", ["qat/distillation/3", "qat/ranges/nothing", "qat/phases"])
def test_others_cannot(fit: Fit, tmp_path: Path, monitor: str) -> None:
    keeper, taught = ModelCheckpoint(tmp_path / "kept", monitor=monitor), QATCallback(distill=Distillation())
    with pytest.raises(ValueError, match=rf"monitor='{monitor}'\): QAT logs no such figure. It logs .*qat/distil"):
        fit(Tiny(), taught, keeper, max_epochs=1)
