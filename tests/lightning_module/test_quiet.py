from __future__ import annotations

import importlib
import logging
import warnings
from pathlib import Path

import pytest

from lq.lightning_module.quiet import quiet_lightning, quiet_trainer


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_quiet_lightning_restores_levels_and_keeps_other_warnings(package: str) -> None:
    logger = logging.getLogger(package)
    before = logger.level
    with quiet_lightning():
        assert logger.level == logging.ERROR
        warnings.warn_explicit("theirs", UserWarning, "_pytree.py", 21, module=f"{package}.utilities._pytree")
        with pytest.warns(UserWarning, match="mine"):
            warnings.warn("mine", stacklevel=1)
    assert logger.level == before


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_the_trainer_is_of_the_package_of_the_module_and_writes_nothing(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lightning = importlib.import_module(package)
    monkeypatch.chdir(tmp_path)

    class Plain(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def validation_step(self, batch: int, batch_idx: int) -> None:
            self.log("seen", float(batch), batch_size=1)

    module = Plain()
    trainer = quiet_trainer(module, limit_val_batches=1)
    assert isinstance(trainer, lightning.Trainer)
    trainer.validate(module, [3, 4], verbose=False)
    assert trainer.callback_metrics["seen"] == 3
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().out
