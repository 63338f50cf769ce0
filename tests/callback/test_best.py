"""A checkpoint of plain data does not make a run unpickle the file that it names as its best."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

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


def test_a_checkpoint_of_another_module_is_not_deployed(tmp_path: Path) -> None:
    kept, callback = ModelCheckpoint(tmp_path / "kept", monitor="val_loss"), qat()
    modules = Tiny(lr=0.1), Tiny(lr=1e-6)  # as in a cross-validation
    make_trainer(tmp_path, callback, kept, max_epochs=3).fit(modules[0], train_loader(), val_loader())
    first = kept.best_model_path
    with pytest.warns(UserWarning, match=r"is of a module that was fitted before\. Give each module a ModelCheckpoint"):
        make_trainer(tmp_path, callback, kept, max_epochs=1).fit(modules[1], train_loader(), val_loader())
    assert kept.best_model_path == first, "it is better than those of the second"
    assert callback.deployment is not None
    assert callback.deployment.directory is not None
    deployed = torch.load(callback.deployment.directory / "prepared.pt", weights_only=True)
    assert torch.equal(deployed["0.weight"], modules[1].model[0].weight)


def test_a_second_fit_of_the_same_module_may_deploy_the_best_of_the_first(tmp_path: Path) -> None:
    kept, callback, module = ModelCheckpoint(tmp_path / "kept", monitor="val_loss"), qat(), Tiny(lr=0.1)
    make_trainer(tmp_path, callback, kept, max_epochs=1).fit(module, train_loader(), val_loader())
    kept.best_model_score = kept.kth_value = torch.tensor(-9.0)
    kept.best_k_models = {kept.best_model_path: torch.tensor(-9.0)}
    make_trainer(tmp_path, callback, kept, max_epochs=1).fit(module, train_loader(), val_loader())
    assert callback.deployment is not None
    assert callback.deployment.directory is not None
    manifest = json.loads((callback.deployment.directory / "lq.json").read_text())
    assert manifest["weights"] == kept.best_model_path


def test_nor_does_a_run_that_is_resumed_with_its_own_checkpoints_lose_them(tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path / "kept", monitor="val_loss", save_last=True)
    make_trainer(tmp_path, qat(), kept, max_epochs=1).fit(Tiny(), train_loader(), val_loader())
    path, callback = kept.best_model_path, qat()
    make_trainer(tmp_path, callback, kept, max_epochs=1).fit(Tiny(), train_loader(), val_loader(), ckpt_path=path)
    assert callback.deployment is not None
    assert callback.deployment.directory is not None
    assert json.loads((callback.deployment.directory / "lq.json").read_text())["weights"] == path
