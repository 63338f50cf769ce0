"""The life of a run, by asserts inside the hooks of real fits."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor

from lq.backends.prepare import is_prepared, prepare, state_of
from lq.callback.progress import position_of
from lq.config.schedule import Position, QATSchedule
from tests.callback.conftest import Fit
from tests.tiny import Tiny, make_trainer, qat, train_loader, val_loader


class Watcher(L.Callback):
    """Records what holds at every step and around every validation."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.ranges: dict[str, list[torch.Tensor]] = {"train": [], "validation": []}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.ranges["train"].append(state_of(pl_module.model).min_val.clone())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        state = state_of(pl_module.model)
        self.steps.append(
            {
                "epoch": trainer.current_epoch,
                "flags": (state.fake_quant, state.observer, state.freeze_bn),
                "lr": optimizer.param_groups[0]["lr"],
            }
        )

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._before = copy.deepcopy(pl_module.state_dict())

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        after = pl_module.state_dict()
        for key, value in self._before.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, after[key]), f"validation moved {key}"
        self.ranges["validation"].append(state_of(pl_module.model).min_val.clone())


SCHEDULE = {"start": 1, "freeze_bn": 2, "observer_off": 3}


def test_module_is_prepared_before_its_optimizer_and_stays_the_users(fit: Fit) -> None:
    class Checks(Tiny):
        def configure_optimizers(self) -> Any:
            self.prepared_first = is_prepared(self.model)
            self.ids = {id(p) for p in self.parameters()}
            return super().configure_optimizers()

    module = Checks()
    before = {id(p) for p in module.parameters()}
    fit(module, qat(), max_epochs=1)
    assert module.prepared_first
    assert module.ids == before == {id(p) for p in module.parameters()}
    assert type(module).forward is Tiny.forward
    assert module.train()(torch.randn(2, 1, 6, 6)).requires_grad


def test_phases_follow_the_schedule_at_every_step(fit: Fit) -> None:
    watcher = Watcher()
    fit(Tiny(), qat(**SCHEDULE), watcher, max_epochs=5)
    assert [step["flags"] for step in watcher.steps] == (
        [(False, False, False)] * 3 + [(True, True, False)] * 3 + [(True, True, True)] * 3 + [(True, False, True)] * 6
    )


def test_points_may_be_steps_in_the_middle_of_an_epoch(fit: Fit) -> None:
    watcher = Watcher()
    fit(Tiny(), qat(start="2 steps", freeze_bn="never", observer_off="4 steps"), watcher, max_epochs=2)
    flags = [step["flags"][:2] for step in watcher.steps]
    assert flags == [(False, False)] * 2 + [(True, True)] * 2 + [(True, False)] * 2


def test_observers_move_in_training_only_and_stop(fit: Fit) -> None:
    watcher = Watcher()
    fit(Tiny(), qat(**SCHEDULE), watcher, max_epochs=5, num_sanity_val_steps=2)
    assert torch.isinf(watcher.ranges["validation"][0]).all(), "the sanity check moved a range"
    after = watcher.ranges["train"]
    assert torch.isinf(after[2]).all()
    moved = [not torch.equal(a, b) for a, b in pairwise(after)]
    assert all(moved[2:8])
    assert not any(moved[8:])


@pytest.mark.parametrize("scheduler", [None, "step", "epoch", "plateau"])
def test_learning_rate_is_the_schedules_at_every_step(fit: Fit, scheduler: str | None) -> None:
    watcher = Watcher()
    schedule = QATSchedule(start=1, freeze_bn=2, observer_off=3, lr=0.5, lr_final=0.1)
    fit(Tiny(scheduler), qat(start=1, freeze_bn=2, observer_off=3, lr=0.5, lr_final=0.1), watcher, max_epochs=4)
    assert len(watcher.steps) == 12
    for step, seen in enumerate(watcher.steps):
        scale = schedule.phase(Position(step / 3, step, 4, None, 3)).lr_scale
        if scale is not None:
            assert seen["lr"] == pytest.approx(0.1 * scale, rel=1e-12), f"step {step}"
    own = {None: [0.1, 0.1, 0.1], "step": [0.1, 0.05, 0.025]}.get(scheduler, [0.1, 0.1, 0.1])
    assert [seen["lr"] for seen in watcher.steps[:3]] == pytest.approx(own)


def test_lr_none_leaves_the_modules_own(fit: Fit) -> None:
    watcher = Watcher()
    fit(Tiny("step"), qat(lr=None), watcher, max_epochs=1)
    assert [seen["lr"] for seen in watcher.steps] == pytest.approx([0.1, 0.05, 0.025])


@pytest.mark.parametrize("monitor_first", [True, False])
def test_learning_rate_monitor_logs_what_is_used(fit: Fit, monitor_first: bool) -> None:
    class Recorder(LearningRateMonitor):
        seen: list[float] = []  # noqa: RUF012

        def on_train_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
            super().on_train_batch_start(trainer, *args, **kwargs)
            type(self).seen.append(self.lrs["lr-SGD"][-1])

    Recorder.seen = []
    watcher, monitor, callback = Watcher(), Recorder(logging_interval="step"), qat(start=1, lr=0.5)
    order = (monitor, callback) if monitor_first else (callback, monitor)
    fit(Tiny("step"), *order, watcher, max_epochs=3)
    assert Recorder.seen == [seen["lr"] for seen in watcher.steps]


def test_before_the_start_the_run_is_the_one_without_the_callback(tmp_path: Path) -> None:
    def run(*callbacks: Any) -> list[dict[str, torch.Tensor]]:
        states: list[dict[str, torch.Tensor]] = []

        class Keep(L.Callback):
            def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
                state = pl_module.state_dict()
                states.append({k: v.clone() for k, v in state.items() if "qat_state" not in k})

        L.seed_everything(1, verbose=False)
        trainer = make_trainer(tmp_path, *callbacks, Keep(), max_epochs=3)
        trainer.fit(Tiny("step"), train_loader(), val_loader())
        return states

    plain, delayed = run(), run(qat(start=2))
    assert plain[0].keys() == delayed[0].keys()
    for step in range(6):
        for key, value in plain[step].items():
            assert torch.equal(value, delayed[step][key]), f"step {step}: {key}"
    assert not torch.equal(plain[8]["model.5.weight"], delayed[8]["model.5.weight"])


def test_batch_norms_that_no_layer_absorbs_freeze_too(fit: Fit) -> None:
    class Preactivated(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Sequential(torch.nn.BatchNorm2d(1), *self.model)

    class Statistics(L.Callback):
        means: list[torch.Tensor] = []  # noqa: RUF012

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            self.means.append(pl_module.model.get_submodule("0").running_mean.clone())

    Statistics.means = []
    module = Preactivated()
    fit(module, qat(freeze_bn=1, observer_off="never"), Statistics(), max_epochs=3)
    moved = [not torch.equal(a, b) for a, b in pairwise(Statistics.means)]
    assert moved == [True, True] + [False] * 6
    assert module.model.get_submodule("0").training, "the next training would find it frozen"


@pytest.mark.parametrize("inside", [False, True])
def test_batch_norms_that_a_step_puts_back_into_training_mode_are_named(fit: Fit, inside: bool) -> None:
    class Trains(Tiny):
        def __init__(self) -> None:
            super().__init__()
            norm = torch.nn.BatchNorm2d(1)
            self.model = self.model if inside else torch.nn.Sequential(norm, *self.model)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.train()
            return super().training_step(batch, batch_idx)

    module = Trains()
    with nullcontext() if inside else pytest.warns(UserWarning, match="statistics of 0 are frozen now, but still move"):
        fit(module, qat(freeze_bn=1, observer_off="never"), max_epochs=2)


def test_after_the_fit_the_module_is_fake_quantized_and_trainable(fit: Fit) -> None:
    module, callback = Tiny(), qat()
    fit(module, callback, max_epochs=1)
    assert type(module.model).__name__ == "Sequential"
    assert callback.deployment is not None
    assert state_of(module.model).fake_quant
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in module.modules()]
    assert not any(hooks), "something still listens"


def test_position_counts_accumulated_steps(fit: Fit) -> None:
    seen: list[Position] = []

    class Positions(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.append(position_of(trainer, batch_idx))

    fit(Tiny(), qat(), Positions(), max_epochs=1, accumulate_grad_batches=2, gradient_clip_val=0.1)
    assert [(p.epoch, p.step, p.steps_per_epoch) for p in seen] == [(0, 0, 2), (1 / 3, 0, 2), (2 / 3, 1, 2)]


def test_one_callback_may_train_several_modules(fit: Fit) -> None:
    class Other(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.model = prepare(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3)))  # before the callback

    callback = qat()
    fit(Tiny(), callback, max_epochs=1)
    assert callback.deployment is not None
    assert "fp32" in callback.deployment.results
    fit(Other(), callback, max_epochs=1)
    assert "fp32" not in callback.deployment.results, "nobody has a float copy of that one"


def test_a_fit_without_steps_keeps_the_result_of_the_one_before(fit: Fit) -> None:
    module, callback = Tiny(), qat()
    trainer = fit(module, callback, max_epochs=1)
    deployment = callback.deployment
    assert deployment is not None
    for _ in range(2):
        with pytest.warns(UserWarning, match="no steps were left to train; nothing.* earlier fit is in ") as caught:
            trainer.fit(module, train_loader(), val_loader())
        assert any(str(deployment.directory) in str(warning.message) for warning in caught)
        assert callback.deployment is deployment


def test_a_fit_without_steps_says_so(fit: Fit) -> None:
    callback = qat()
    with pytest.warns(UserWarning, match="no steps were left to train; nothing was quantized or exported.$"):
        fit(Tiny(), callback, max_epochs=0)
    assert callback.deployment is None


def test_a_fit_that_ends_early_has_no_result(fit: Fit) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = True

    callback = qat(start="2 steps")
    fit(Tiny(), callback, max_epochs=1)
    with pytest.warns(UserWarning, match="ended before QAT started; nothing was quantized or exported.$"):
        fit(Tiny(), callback, Stop(), max_epochs=1)
    assert callback.deployment is None


def test_a_second_fit_goes_on_with_the_ranges_of_the_first(fit: Fit) -> None:
    module, callback = Tiny(), qat(start=0, observer_off=1)
    trainer = fit(module, callback, max_epochs=2)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, train_loader(), val_loader())
    assert trainer.current_epoch == 3
    assert callback.deployment is not None
