"""A fit that starts from the weights of a float checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lq import QATCallback
from lq.backends.prepare import prepare
from lq.callback.float_start import start_from
from tests.callback.conftest import Fit
from tests.tiny import Tiny, keeper, make_trainer, val_loader


class Seen(L.Callback):
    """Notes the first weight before the first step."""

    weight: Tensor | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.weight = pl_module.model[0].weight.detach().clone()


@pytest.fixture
def float_ckpt(tmp_path: Path) -> tuple[str, Tensor]:
    """A checkpoint, and its first weight."""
    module, path = Tiny(), tmp_path / "float.ckpt"
    torch.save({"state_dict": module.state_dict(), "epoch": 9, "global_step": 90}, path)
    return str(path), module.model[0].weight.detach().clone()


def test_the_module_takes_the_weights_and_begins_its_own_epochs(fit: Fit, float_ckpt: tuple[str, Tensor]) -> None:
    path, weight = float_ckpt
    seen, callback = Seen(), QATCallback(float_ckpt_path=path)
    trainer = fit(Tiny(), callback, seen, max_epochs=1)
    assert seen.weight is not None
    assert torch.equal(seen.weight, weight)
    assert trainer.global_step == 3
    assert callback.deployment is not None


def test_a_validation_before_the_fit_takes_them_too(tmp_path: Path, float_ckpt: tuple[str, Tensor], fit: Fit) -> None:
    path, weight = float_ckpt
    module, seen, callback = Tiny(), Seen(), QATCallback(float_ckpt_path=path)
    make_trainer(tmp_path, callback).validate(module, val_loader(), verbose=False)
    assert torch.equal(module.model[0].weight, weight)
    fit(module, callback, seen, max_epochs=1)
    assert seen.weight is not None
    assert torch.equal(seen.weight, weight)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_that_is_resumed_does_not_read_it(fit: Fit, float_ckpt: tuple[str, Tensor], tmp_path: Path) -> None:
    path, weight = float_ckpt
    kept = keeper(tmp_path / "kept")
    fit(Tiny(), QATCallback(float_ckpt_path=path), kept, max_epochs=1)
    last = kept.last_model_path
    Path(path).unlink()
    seen = Seen()
    fit(Tiny(), QATCallback(float_ckpt_path=path), seen, keeper(tmp_path / "again"), max_epochs=2, ckpt_path=last)
    assert seen.weight is not None
    assert not torch.equal(seen.weight, weight)


def test_a_module_that_was_prepared_before_keeps_its_weights(fit: Fit, float_ckpt: tuple[str, Tensor]) -> None:
    module, seen = Tiny(), Seen()
    prepare(module.model, example_args=(torch.rand(2, 1, 6, 6),))
    weight = module.model[0].weight.detach().clone()
    with pytest.warns(UserWarning, match="is not read, because this Tiny was prepared for QAT before"):
        fit(module, QATCallback(float_ckpt_path=float_ckpt[0]), seen, max_epochs=1)
    assert seen.weight is not None
    assert torch.equal(seen.weight, weight)


def test_another_checkpoint_for_the_same_module_is_read_before_a_fit_and_refused_after_it(
    fit: Fit, float_ckpt: tuple[str, Tensor], tmp_path: Path
) -> None:
    module, other = Tiny(), tmp_path / "other.ckpt"
    torch.save({"state_dict": Tiny().state_dict()}, other)
    start_from(other, module, "model", dict)
    start_from(float_ckpt[0], module, "model", dict)
    assert torch.equal(module.model[0].weight, float_ckpt[1])
    fit(module, QATCallback(float_ckpt_path=float_ckpt[0]), max_epochs=1)
    with pytest.warns(UserWarning, match=r"other\.ckpt' is not read, because this Tiny was prepared for QAT before"):
        fit(module, QATCallback(float_ckpt_path=str(other)), max_epochs=1)


class Own:
    """A hyperparameter of a class of its own."""


def test_what_is_no_float_checkpoint_of_the_module_is_refused_before_any_step(fit: Fit, tmp_path: Path) -> None:
    wrong = {
        "missing.ckpt": (None, FileNotFoundError, "there is no checkpoint .*missing.ckpt"),
        "other.ckpt": ({"state_dict": nn.Linear(2, 2).state_dict()}, ValueError, "other.ckpt does not fit Tiny"),
        "classes.ckpt": (
            {"state_dict": Tiny().state_dict(), "hyper_parameters": {"own": Own()}}, ValueError,
            r"holds more than plain data.*module.load_state_dict\(torch.load\(path, weights_only=False",
        ),
    }  # fmt: skip
    for name, (content, kind, message) in wrong.items():
        if content is not None:
            torch.save(content, tmp_path / name)
        with pytest.raises(kind, match=message):
            fit(Tiny(), QATCallback(float_ckpt_path=str(tmp_path / name)), max_epochs=1)
    with pytest.raises(TypeError, match=r"float_ckpt_path=5.*runs/float.ckpt"):
        QATCallback(float_ckpt_path=5)  # type: ignore[arg-type]
