"""What long jobs use, each in a real fit that ends with an int8 model which agrees with what was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelSummary,
    Timer,
)
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lq.backends.prepare import state_of
from lq.callback import QATCallback
from tests.callback.conftest import Fit
from tests.tiny import Tiny, keeper, make_data, make_trainer, qat, train_loader, val_loader


class ChannelsLast(Tiny):
    """With inputs whose memory format differs from their shape."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(),
            nn.Linear(16, 3),
        )  # fmt: skip
        self.to(memory_format=torch.channels_last)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x: Tensor = batch[0].expand(-1, 2, -1, -1).contiguous(memory_format=torch.channels_last)
        assert self.model.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)
        return x, batch[1]


class Backbone(Tiny):
    """As BackboneFinetuning wants it: frozen first, then in parameter groups of its own."""

    def __init__(self) -> None:
        super().__init__()
        del self.model
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())  # BatchNorm would not be frozen
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.backbone(x))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr)


class Clips(Tiny):
    """Clips in its own hook."""

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.01, gradient_clip_algorithm="value")
        assert all(p.grad.abs().max() <= 0.01 for p in self.parameters() if p.grad is not None)


class TwoOptimizers(Tiny):
    """Manual optimization that takes turns, with a scheduler for each."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()[batch_idx % 2]  # type: ignore[index]
        self.toggle_optimizer(optimizer)
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=1.0)
        optimizer.step()
        optimizer.zero_grad()
        self.untoggle_optimizer(optimizer)

    def on_train_epoch_end(self) -> None:
        for scheduler in self.lr_schedulers():  # type: ignore[union-attr]
            scheduler.step()

    def configure_optimizers(self) -> Any:
        first = [p for name, p in self.model.named_parameters() if not name.startswith("5.")]
        second = list(self.model.get_submodule("5").parameters())
        optimizers = [torch.optim.SGD(first, lr=0.1), torch.optim.Adam(second, lr=0.01)]
        return optimizers, [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in optimizers]


@dataclass(frozen=True)
class Feature:
    """Trainer arguments, callbacks, module and loaders of one feature."""

    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Any]] = list
    module: Callable[[], Tiny] = Tiny
    qat: Callable[[], QATCallback] = lambda: qat(start=1)
    loaders: Callable[[], Any] = lambda: (train_loader(), val_loader())


FEATURES: dict[str, Feature] = {
    "accumulate_grad_batches": Feature({"accumulate_grad_batches": 2}),
    "GradientAccumulationScheduler": Feature(callbacks=lambda: [GradientAccumulationScheduler({0: 1, 1: 2})]),
    "clip by norm": Feature({"gradient_clip_val": 0.1}),
    "clip by value": Feature({"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
    "clip in a hook": Feature(module=Clips),
    "EarlyStopping": Feature(callbacks=lambda: [EarlyStopping("val_loss", patience=5)]),
    "EarlyStopping on qat/fake": Feature(
        callbacks=lambda: [EarlyStopping("qat/fake/accuracy", mode="max", patience=9)], qat=lambda: qat()
    ),
    "Timer": Feature(callbacks=lambda: [Timer(timedelta(minutes=5))]),
    "max_time": Feature({"max_time": timedelta(minutes=5)}),
    "max_steps": Feature({"max_steps": 7, "max_epochs": -1}),
    "overfit_batches": Feature({"overfit_batches": 1}, loaders=lambda: (train_loader(), train_loader())),
    "limit_batches": Feature({"limit_train_batches": 2, "limit_val_batches": 1}),
    "val_check_interval": Feature({"val_check_interval": 0.34}),
    "check_val_every_n_epoch": Feature({"check_val_every_n_epoch": 2, "max_epochs": 4}),
    "no sanity check": Feature({"num_sanity_val_steps": 0}),
    "inference_mode=False": Feature({"inference_mode": False}),
    "detect_anomaly": Feature({"detect_anomaly": True}),
    "reload_dataloaders": Feature({"reload_dataloaders_every_n_epochs": 1}),
    "ModelSummary": Feature(callbacks=lambda: [ModelSummary(max_depth=3)]),
    "profiler": Feature({"profiler": "simple"}),
    "channels_last": Feature(module=ChannelsLast),
    "several optimizers, manual": Feature(module=TwoOptimizers),
    "BackboneFinetuning": Feature(
        callbacks=lambda: [BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.01)], module=Backbone
    ),
    "worker processes": Feature(
        loaders=lambda: (DataLoader(make_data(), 8, num_workers=1, persistent_workers=True), val_loader())
    ),
    "bf16-mixed": Feature({"precision": "bf16-mixed", "gradient_clip_val": 0.5}),
    "learned scales": Feature(qat=lambda: _learned()),
}


def _learned() -> QATCallback:
    from lq.config.qconfig import QConfig
    from lq.config.specs import ActivationSpec, WeightSpec

    qconfig = QConfig(weight=WeightSpec(learned_scale=True), activation=ActivationSpec(learned_scale=True))
    return QATCallback(qconfig=qconfig)


def assert_deployed(callback: QATCallback) -> None:
    assert callback.deployment is not None
    assert callback.deployment.results["torch_vs_fake"]["sqnr_db"] > 30
    assert callback.deployment.directory is not None


@pytest.mark.parametrize("name", FEATURES)
def test_feature(fit: Fit, name: str) -> None:
    feature = FEATURES[name]
    module, callback = feature.module(), feature.qat()
    fit(module, callback, *feature.callbacks(), loaders=feature.loaders(), **feature.trainer)
    assert_deployed(callback)


# ---- features that need more than a fit --------------------------------------------------------------------------


def test_max_time_ends_the_training_and_deploys(fit: Fit) -> None:
    import time

    class Slow(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            time.sleep(0.02)
            return super().training_step(batch, batch_idx)

    callback = qat(start="3 steps", freeze_bn="6 steps", observer_off="6 steps")
    trainer = fit(Slow(), callback, max_epochs=10_000, max_time=timedelta(seconds=1.5))
    assert trainer.current_epoch < 1000
    assert_deployed(callback)


def test_max_time_alone_needs_a_schedule_without_shares(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"a share of the training needs its end.*Set max_epochs"):
        fit(Tiny(), qat(), max_epochs=-1, max_time=timedelta(seconds=1))


def test_learning_rate_finder(fit: Fit) -> None:
    class Finds(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[float] = []

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.seen.append(optimizer.param_groups[0]["lr"])

    def finder() -> LearningRateFinder:
        return LearningRateFinder(min_lr=1e-4, max_lr=1e-1, num_training_steps=30, early_stop_threshold=None)

    callback = qat(lr=0.5, lr_final=1.0)
    seen = []
    for callbacks in ((), (callback,)):
        torch.manual_seed(0)
        module = Finds()
        fit(module, *callbacks, finder(), max_epochs=1, loaders=(train_loader(320), val_loader()))
        seen.append(module.seen[-5:])
    # Not module.lr: what Lightning 2.4 finds does not reach the optimizer.
    assert seen[1] == pytest.approx([0.5 * lr for lr in seen[0]]), "QAT anneals what was found"
    assert_deployed(callback)


def test_tuner_before_the_fit(fit: Fit, tmp_path: Any) -> None:
    module, callback = Tiny(), qat()
    trainer = make_trainer(tmp_path, callback, max_epochs=1)
    Tuner(trainer).lr_find(module, train_loader(), val_loader(), num_training=30, early_stop_threshold=None)
    assert callback.deployment is None, "the search is no training"
    trainer.fit(module, train_loader(), val_loader())
    assert_deployed(callback)


class Compiles(Tiny):
    """Compiles its network when that is prepared."""

    def on_fit_start(self) -> None:
        self.model.compile(backend="eager")


@pytest.mark.parametrize("sanity", [0, 2], ids=["training first", "sanity check first"])
@pytest.mark.parametrize("how", ["fit(torch.compile(module))", "module.compile()", "model.compile() in on_fit_start"])
def test_torch_compile(fit: Fit, how: str, sanity: int) -> None:
    torch._dynamo.reset()
    module, callback = Compiles() if how.startswith("model") else Tiny(), qat(start=1)
    if how == "module.compile()":
        module.compile(backend="eager")
    given: Any = torch.compile(module, backend="eager") if how.startswith("fit") else module
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    trainer = fit(given, callback, num_sanity_val_steps=sanity)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before, "nothing was compiled"
    assert {"qat/fake/accuracy", "qat/fp32/accuracy"} <= trainer.callback_metrics.keys()
    assert_deployed(callback)
    assert torch.isfinite(state_of(module.model).min_val).all()


def test_compiled_code_runs_again_behind_a_validation_on_its_own(tmp_path: Any) -> None:
    module: Any = torch.compile(Tiny(), backend="eager")
    make_trainer(tmp_path, qat()).validate(module, val_loader(), verbose=False)
    compiled: list[Any] = []
    torch.compile(lambda x: x + 1, backend=lambda graph, _: compiled.append(graph) or graph.forward)(torch.ones(2))
    assert compiled


def test_compiled_steps_are_those_of_eager_code(fit: Fit) -> None:
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = Tiny()
        module.model.get_submodule("3").p = 0.0  # dropout: another stream of random numbers
        if compiled:
            module.compile(backend="eager")
        fit(module, qat(start=1, lr=0.5))
        weights.append(module.model.get_parameter("5.weight").detach().clone())
    torch.testing.assert_close(*weights)


class Direct(Tiny):
    def __init__(self) -> None:
        super().__init__()
        del self.model
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.relu(self.conv(x)).flatten(1))


@pytest.mark.parametrize("how", ["wrapped", "in place", "whole"])
def test_target_that_was_compiled_before_it_is_prepared_is_refused(fit: Fit, how: str) -> None:
    module: Any = Direct() if how == "whole" else Tiny()
    if how == "wrapped":
        module.model = torch.compile(module.model, backend="eager")
    elif how == "in place":
        module.model.compile(backend="eager")
    given = torch.compile(module, backend="eager") if how == "whole" else module
    with pytest.raises(ValueError, match=r"was compiled before QAT prepares it.*trainer\.fit\(torch\.compile\(module"):
        fit(given, qat())


@pytest.mark.parametrize("schedule", [{}, {"start": 2}], ids=["at once", "delayed"])
def test_checkpoint_by_a_figure_of_qat(fit: Fit, tmp_path: Any, schedule: dict[str, Any]) -> None:
    callback = qat(**schedule)
    kept = keeper(tmp_path / "kept", monitor="qat/fake/accuracy", mode="max", save_top_k=2)
    fit(Tiny(), callback, kept, max_epochs=4)
    assert_deployed(callback)
    assert kept.best_model_score is not None
    assert torch.isfinite(kept.best_model_score)
    saved = torch.load(kept.best_model_path, weights_only=True)
    assert saved["lq"]["started"]


def test_early_stopping_by_a_figure_of_qat_before_it_starts_is_refused(fit: Fit) -> None:
    stopping = EarlyStopping("qat/fake/accuracy", mode="max")
    with pytest.raises(ValueError, match=r"monitor='qat/fake/accuracy'\): this metric is not logged before QAT starts"):
        fit(Tiny(), qat(start=1), stopping)
    callback = qat(start=1)
    fit(Tiny(), callback, EarlyStopping("qat/fake/accuracy", mode="max", strict=False, patience=9))
    assert_deployed(callback)


@pytest.mark.parametrize("start", [0, 1])
def test_early_stopping_that_compares_with_the_float_model_is_told_of(
    fit: Fit, start: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        fit(Tiny(), qat(start=start), EarlyStopping("val_loss", patience=9))
    assert ("EarlyStopping(monitor='val_loss') looks at the float model until QAT starts" in caplog.text) is bool(start)


def test_checkpoint_by_a_figure_that_never_comes_says_so(fit: Fit, tmp_path: Any) -> None:
    kept = ModelCheckpoint(tmp_path / "kept", monitor="qat/fake/acuracy", mode="max")
    with pytest.raises(ValueError, match=r"'qat/fake/acuracy'\): QAT logs no such figure\. It logs qat/fake/accu"):
        fit(Tiny(), qat(start=1), kept)


def test_checkpoint_by_a_figure_of_some_epochs(fit: Fit, tmp_path: Any) -> None:
    callback = QATCallback(int8_every_n_epochs=2)
    kept = keeper(tmp_path / "kept", monitor="qat/int8/accuracy", mode="max")
    fit(Tiny(), callback, kept, max_epochs=3)
    assert "epoch=1" in kept.best_model_path


def test_checkpoint_by_the_float_figure_of_the_first_epoch(fit: Fit, tmp_path: Any) -> None:
    kept = keeper(tmp_path / "kept", monitor="qat/fp32/accuracy", mode="max")
    fit(Tiny(), qat(start=1), kept, max_epochs=4)
    assert "epoch=1" in kept.best_model_path


def test_a_validation_on_its_own_asks_for_no_figure(tmp_path: Any) -> None:
    module, kept = Tiny(), keeper(tmp_path / "kept", monitor="qat/ranges/saturated_max")
    trainer = make_trainer(tmp_path, qat(), kept, max_epochs=1)
    trainer.fit(module, train_loader(), val_loader())
    assert kept.best_model_path
    assert "qat/fake/accuracy" in trainer.validate(module, val_loader(), verbose=False)[0]
