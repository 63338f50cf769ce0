"""Averages of weights beside QAT: each form has the right value, or is refused before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import BackboneFinetuning, BatchSizeFinder, LearningRateFinder, ModelPruning
from torch import nn
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_avg_fn,
    get_swa_multi_avg_fn,
)

from lq.backends.prepare import state_of
from lq.callback import QATCallback
from lq.config.qconfig import QConfig
from lq.config.schedule import QATSchedule
from lq.config.specs import ActivationSpec, WeightSpec
from lq.ptq.layers import layers_of
from tests.callback.conftest import Fit
from tests.tiny import Tiny, make_net, make_trainer, qat, train_loader, val_loader

WeightAveraging: Any = getattr(callbacks, "WeightAveraging", None)
needs_averaging = pytest.mark.skipif(WeightAveraging is None, reason="Lightning averages weights this way since 2.6")

FORMS: dict[str, Callable[[], Any]] = {
    "equal": lambda: WeightAveraging(),
    "equal, buffers copied": lambda: WeightAveraging(use_buffers=False),
    "EMA": lambda: WeightAveraging(avg_fn=get_ema_avg_fn(0.9)),
    "EMA of many": lambda: WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    "EMA of many, buffers copied": lambda: WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=False),
    "SWA": lambda: WeightAveraging(avg_fn=get_swa_avg_fn()),
    "SWA of many, buffers copied": lambda: WeightAveraging(multi_avg_fn=get_swa_multi_avg_fn(), use_buffers=False),
}


@needs_averaging
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_averaged_weights_on_the_ranges_of_the_training(fit: Fit, form: str, start: int) -> None:
    module, callback, averaging = Tiny(), qat(start=start), FORMS[form]()
    fit(module, callback, averaging, max_epochs=3)
    state, average = state_of(module.model), averaging._average_model.module
    assert torch.isfinite(state.min_val).all()
    assert not any(buffer.isnan().any() for buffer in module.buffers())
    for name, parameter in average.named_parameters():
        assert torch.equal(parameter, module.get_parameter(name)), "the average is what was deployed"
    assert torch.equal(state_of(average.model).min_val, state.min_val)
    assert callback.deployment is not None
    assert callback.deployment.parity["torch"].passed


class Halves(callbacks.Callback):
    """Validates with other weights than those that are trained, as averages of one's own do."""

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.model[5].weight.data /= 2

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.model[5].weight.data *= 2


@needs_averaging
@pytest.mark.parametrize("averaging", [lambda: callbacks.EMAWeightAveraging(decay=0.9), Halves], ids=["EMA", "own"])
def test_int8_models_during_the_fit_have_the_weights_that_are_validated(fit: Fit, averaging: Any) -> None:
    callback = QATCallback(schedule=QATSchedule(lr=1.0, lr_final=1.0), int8_every_n_epochs=1)
    metrics: dict[str, Any] = {}  # of the last validation; the end of the fit has figures of its own
    note = callbacks.LambdaCallback(on_validation_end=lambda trainer, _: metrics.update(trainer.callback_metrics))
    fit(Tiny(), callback, averaging(), note, max_epochs=2)
    assert metrics["qat/int8_vs_fake/sqnr_db"] > 30
    assert metrics["qat/int8/val_loss"] == pytest.approx(float(metrics["val_loss"]), abs=0.01)


@needs_averaging
def test_learned_scales_are_not_averaged_with_the_zero_that_they_start_from(fit: Fit) -> None:
    learned = QConfig(weight=WeightSpec(learned_scale=True), activation=ActivationSpec(learned_scale=True))
    callback = QATCallback(qconfig=learned, schedule=QATSchedule(start=1))
    module = Tiny()
    fit(module, callback, callbacks.EMAWeightAveraging(decay=0.999), max_epochs=3)
    layers = {row.name: row.module for row in layers_of(module.model)}
    for index in ("0", "5"):
        layer: Any = layers[index]
        covered = layer.weight_scale.detach() * layer.weight_spec.quant_max
        assert covered.max() > 0.3 * layer.weight.detach().abs().max(), "the grid covers the weights"


@needs_averaging
def test_an_average_that_cannot_take_integers_is_refused(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"cannot average integers.*use_buffers=False"):
        fit(Tiny(), qat(), WeightAveraging(multi_avg_fn=get_swa_multi_avg_fn()))


@pytest.mark.parametrize("behind", [True, False])
def test_pruning_is_refused_wherever_it_stands(fit: Fit, behind: bool) -> None:
    pruning = ModelPruning("l1_unstructured", amount=0.3)
    order = (qat(), pruning) if behind else (pruning, qat())
    with pytest.raises(ValueError, match=r"^ModelPruning cannot be used with QATCallback.*make_pruning_permanent"):
        fit(Tiny(), *order)


def test_pruning_of_the_other_package_is_refused(tmp_path: Path) -> None:
    other = pytest.importorskip("pytorch_lightning")

    class Lit(other.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = make_net()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss: torch.Tensor = self.model(batch[0]).sum()
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    pruning = other.callbacks.ModelPruning("l1_unstructured", amount=0.3)
    trainer = other.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[qat(), pruning],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"^ModelPruning cannot be used with QATCallback.*make_pruning_permanent"):
        trainer.fit(Lit(), train_loader())


class Backbone(Tiny):
    """As BackboneFinetuning wants it: frozen first, then in a parameter group of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()), nn.Linear(64, 3)
        del self.model

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.backbone(x))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr)


def test_the_rate_of_a_backbone_is_its_share_of_that_of_the_head_and_a_resumed_run_knows_it(
    fit: Fit, tmp_path: Path
) -> None:
    def run(*order: Any, **kwargs: Any) -> list[float]:
        trainer = fit(Backbone(), *order, max_epochs=3, **kwargs)
        return [group["lr"] for group in trainer.optimizers[0].param_groups]

    def finetuning() -> BackboneFinetuning:
        return BackboneFinetuning(
            unfreeze_backbone_at_epoch=1, backbone_initial_ratio_lr=0.1, lambda_func=lambda epoch: 1.0
        )

    class Save(callbacks.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    head, backbone = run(qat(), finetuning(), Save())
    assert backbone == pytest.approx(0.1 * head)
    saved = tmp_path / "1.ckpt"
    assert run(qat(), finetuning(), ckpt_path=saved) == pytest.approx([head, backbone])
    with pytest.raises(
        ValueError, match=r"^BackboneFinetuning restores the learning rates.*\[QATCallback\(\.\.\.\), B"
    ):
        run(finetuning(), qat(), ckpt_path=saved)


class HandMade(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.average = AveragedModel(self.model)


def test_a_hand_made_average_of_the_float_model_is_refused(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"HandMade\.average is an AveragedModel, .*EMAWeightAveraging"):
        fit(HandMade(), QATCallback(target="model"))


def finder(kind: str) -> Any:
    if kind == "rate":
        return LearningRateFinder(min_lr=1e-4, max_lr=1e-1, num_training_steps=30, early_stop_threshold=None)
    return BatchSizeFinder(max_trials=2, steps_per_trial=1)


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("kind", ["rate", "batch size"])
def test_finders_leave_the_training_as_it_was(
    tmp_path: Path, kind: str, behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sized(Tiny):
        batch_size = 8
        phases: list[Any] = []  # noqa: RUF012

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            state = state_of(self.model)
            self.phases.append((self.trainer.global_step, state.fake_quant, optimizer.param_groups[0]["lr"]))

        def train_dataloader(self) -> Any:
            return train_loader(320, self.batch_size)

        def val_dataloader(self) -> Any:
            return val_loader()

    monkeypatch.setattr("lightning.pytorch.tuner.lr_finder._LRFinder.suggestion", lambda *_, **__: 0.02)
    Sized.phases = []
    module, callback = Sized(), qat(lr=0.5, lr_final=1.0)
    order = (callback, finder(kind)) if behind else (finder(kind), callback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = make_trainer(tmp_path, *order, max_epochs=1)
        trainer.fit(module)
    step, fake_quant, rate = module.phases[-1]
    assert fake_quant
    assert step == trainer.global_step - 1
    if kind == "rate" and rate != 0.05:  # what Lightning 2.4 finds does not reach the optimizer
        assert rate == pytest.approx(0.01)
    assert callback.deployment is not None
