"""A checkpoint of plain data does not make a run unpickle the file that it names as its best."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lq.callback import QATCallback
from tests.tiny import WEIGHTS_ONLY, Tiny, keeper, make_trainer, qat, train_loader, val_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.skipif(not WEIGHTS_ONLY, reason="Lightning reads checkpoints as plain data on demand since 2.6"),
]


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def fit(folder: Path, epochs: int, **kwargs: Any) -> QATCallback:
    callback = qat()
    trainer = make_trainer(
        folder, callback, keeper(folder / "kept", monitor="val_loss", enable_version_counter=False), max_epochs=epochs
    )
    trainer.fit(Tiny(), train_loader(), val_loader(), **kwargs)
    return callback


@pytest.mark.parametrize("trust", [False, True])
def test_only_a_trusted_checkpoint_may_name_a_pickle(tmp_path: Path, trust: bool) -> None:
    fit(tmp_path, 1)
    other, given = tmp_path / "kept" / "other.ckpt", tmp_path / "given.ckpt"
    torch.save({"state_dict": Bomb(tmp_path / "code-ran")}, other)
    content = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)
    state = next(state for key, state in content["callbacks"].items() if "ModelCheckpoint" in key)
    low = torch.tensor(-9.0)
    state.update(best_model_path=str(other), best_k_models={str(other): low}, best_model_score=low, kth_value=low)
    state["kth_best_model_path"] = str(other)
    torch.save(content, given)
    said = "state_dict is None" if trust else r"names as its best, cannot be read as plain data .*weights_only=False"
    with pytest.warns(UserWarning, match=rf"(?s){said}"):
        callback = fit(tmp_path, 2, ckpt_path=given, weights_only=not trust)
    assert (tmp_path / "code-ran").exists() == trust
    assert callback.deployment is not None
    assert callback.deployment.directory is not None
