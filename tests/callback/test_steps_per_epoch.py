"""Epochs with different numbers of optimizer steps: phases only go forward, also in a run that was resumed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.utils.data import DataLoader

from lq.backends.prepare import state_of
from tests.callback.conftest import Fit
from tests.tiny import RESUMES_MID_EPOCH, NoNoise, Tiny, keeper, make_data, make_trainer, qat, resumable, val_loader

OWN = ("forward", "training_step", "validation_step", "configure_optimizers")

Row = tuple[int, int, bool, bool, float]


class Phases(L.Callback):
    """Step, batch, BatchNorm frozen, observers on and learning rate of every batch that trains quantized."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], Row] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        state, lr = state_of(pl_module.model), trainer.optimizers[0].param_groups[0]["lr"]
        if state.fake_quant:
            where = (trainer.current_epoch, batch_idx)
            self.rows[where] = (trainer.global_step, batch_idx, state.freeze_bn, state.observer, lr)

    def check(self) -> list[Row]:
        """The rows, if they only go forward."""
        rows = list(self.rows.values())
        for before, after in pairwise(rows):
            assert before[2] <= after[2], f"BatchNorm thaws: {before} {after}"
            assert before[3] >= after[3], f"observers begin again: {before} {after}"
            assert before[4] > after[4], f"the learning rate rises: {before} {after}"
        return rows


class Grows(NoNoise):
    """Epochs of 2, 6, 3 and 3 batches."""

    def train_dataloader(self) -> Any:
        count = (2, 6, 3, 3)[self.trainer.current_epoch]
        return DataLoader(make_data(8 * count), batch_size=8)

    def val_dataloader(self) -> Any:
        return val_loader()


class TwoSteps(NoNoise):
    """Manual optimization: both optimizers make a step in every batch."""

    def __init__(self) -> None:
        super().__init__(None)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizers: Any = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        parameters = list(self.model.parameters())
        return [torch.optim.SGD(parameters[:2], lr=0.1), torch.optim.SGD(parameters[2:], lr=0.1)]


def accumulating() -> list[Any]:
    return [GradientAccumulationScheduler({0: 1, 2: 4})]


def test_with_an_accumulation_that_changes(fit: Fit) -> None:
    phases = Phases()
    fit(NoNoise(), qat(start="3 steps"), *accumulating(), phases, loaders=(resumable(32), val_loader()), max_epochs=4)
    rows = phases.check()
    assert rows[0][:2] == (3, 3)
    assert rows[0][4] == pytest.approx(0.1 * 0.01)
    assert next(i for i, row in enumerate(rows) if row[2]) == 5, "after 3/8 of the 13 batches that are left"
    assert next(i for i, row in enumerate(rows) if not row[3]) == 7, "after half of them"


def test_with_loaders_of_other_lengths(fit: Fit) -> None:
    phases = Phases()
    trainer = fit(
        Grows(), qat(start="3 steps"), phases, loaders=(None, None), max_epochs=4, reload_dataloaders_every_n_epochs=1
    )
    rows = phases.check()
    assert trainer.global_step == 14
    assert rows[0][:2] == (3, 1)


def test_a_late_start_in_steps_with_loaders_of_other_lengths(fit: Fit) -> None:
    phases = Phases()
    with pytest.warns(UserWarning, match="start='9 steps': whether that is before the end .* after 4 epochs, shows"):
        fit(
            Grows(),
            qat(start="9 steps"),
            phases,
            loaders=(None, None),
            max_epochs=4,
            reload_dataloaders_every_n_epochs=1,
        )
    assert phases.check()[0][0] == 9


def test_steps_of_all_optimizers_count(fit: Fit) -> None:
    phases = Phases()
    with pytest.warns(UserWarning, match=r"start='12 steps': whether that is before the end .* after 4 epochs, shows"):
        trainer = fit(TwoSteps(), qat(start="12 steps"), phases, loaders=(resumable(32), val_loader()), max_epochs=4)
    rows = phases.check()
    assert trainer.global_step == 32
    assert rows[0][0] == 12
    assert next(row[0] for row in rows if row[2]) == 20
    assert next(row[0] for row in rows if not row[3]) == 22


def test_a_late_start_in_steps_of_several_optimizers(fit: Fit) -> None:
    phases = Phases()
    with pytest.warns(UserWarning, match="start='20 steps': whether"):
        fit(TwoSteps(), qat(start="20 steps"), phases, loaders=(resumable(32), val_loader()), max_epochs=4)
    assert phases.check()[0][0] == 20


@pytest.mark.filterwarnings(
    "ignore:The dirpath has changed",
    "ignore:lq. start='3 steps'. whether",
    "ignore:Using ModelCheckpoint with manual optimization",
)
@pytest.mark.parametrize(
    ("module", "callbacks", "every_n_train_steps"),
    # In the middle of an epoch Lightning does not call the callback that accumulates.
    [(NoNoise, accumulating, None), (Grows, list, None), (TwoSteps, list, 1)],
    ids=["accumulation that changes", "loaders of other lengths", "two optimizers"],
)
@pytest.mark.parametrize("stop", [(1, 1), (2, 0), (3, 2)])
def test_a_resumed_run_is_in_the_same_phases(
    tmp_path: Path,
    module: Callable[[], Tiny],
    callbacks: Callable[[], list[Any]],
    every_n_train_steps: int | None,
    stop: tuple[int, int],
) -> None:
    if not RESUMES_MID_EPOCH:
        pytest.skip("this Lightning cannot resume in the middle of an epoch")

    def run(folder: str, *more: Any, ckpt_path: Path | None = None) -> tuple[Phases, dict[str, Tensor]]:
        torch.manual_seed(1)
        phases, trained = Phases(), module()
        kept = keeper(tmp_path / folder, every_n_train_steps=every_n_train_steps)
        own = module is Grows
        trainer = make_trainer(
            tmp_path,
            qat(start="3 steps", lr=0.5),
            *callbacks(),
            phases,
            kept,
            *more,
            max_epochs=4,
            reload_dataloaders_every_n_epochs=int(own),
        )
        train, val = (None, None) if own else (resumable(32), val_loader())
        trainer.fit(trained, train, val, ckpt_path=ckpt_path)
        return phases, trained.state_dict()

    class Crash(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if (trainer.current_epoch, batch_idx) == stop:
                raise RuntimeError("the power went out")

    whole, weights = run("whole")
    whole.check()
    with pytest.raises(RuntimeError, match="the power went out"):
        run("first", Crash())
    again, resumed = run("second", ckpt_path=tmp_path / "first" / "last.ckpt")
    assert again.rows.items() <= whole.rows.items()
    assert again.rows
    for key, value in weights.items():
        assert not isinstance(value, Tensor) or torch.equal(value, resumed[key]), key


def test_a_start_that_never_comes_is_refused_where_accumulation_changes(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"start='10 steps', but the training ends after 4 epochs or 10 steps"):
        fit(NoNoise(), qat(start="10 steps"), *accumulating(), loaders=(resumable(32), val_loader()), max_epochs=4)


def test_so_it_is_with_the_other_package_of_lightning(tmp_path: Path) -> None:
    other = pytest.importorskip("pytorch_lightning")
    kind: Any = type("Lit", (other.LightningModule,), {name: getattr(Tiny, name) for name in OWN})
    module = kind()
    module.model, module.scheduler, module.lr = NoNoise().model, None, 0.1
    callbacks = [qat(start="10 steps"), other.callbacks.GradientAccumulationScheduler({0: 1, 2: 4})]
    settings: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 4, "log_every_n_steps": 1}
    trainer = other.Trainer(**settings, default_root_dir=tmp_path, callbacks=callbacks)
    with pytest.raises(ValueError, match=r"start='10 steps', but the training ends after 4 epochs or 10 steps"):
        trainer.fit(module, resumable(32), val_loader())


def test_one_factor_for_all_epochs(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"start='5 steps', but the training ends after 3 epochs \(3 steps\): nothing"):
        fit(
            NoNoise(),
            qat(start="5 steps"),
            GradientAccumulationScheduler({0: 4}),
            loaders=(resumable(32), val_loader()),
        )


@pytest.mark.parametrize(("factors", "is_warned"), [({0: 4}, False), ({0: 4, 1: 2}, True)])
def test_a_training_that_is_limited_by_steps(fit: Fit, factors: dict[int, int], is_warned: bool) -> None:
    phases = Phases()
    with pytest.warns(UserWarning, match="start=2: whether") if is_warned else nullcontext():
        fit(
            NoNoise(),
            qat(start=2),
            GradientAccumulationScheduler(factors),
            phases,
            loaders=(resumable(32), val_loader()),
            max_epochs=-1,
            max_steps=6,
        )
    rows = list(phases.rows.values())
    assert rows[0][:2] == (2 + is_warned, 0)
    assert all(before[4] >= after[4] for before, after in pairwise(rows))


def test_observers_that_stop_before_the_start_are_refused_when_that_shows(fit: Fit) -> None:
    with pytest.raises(
        ValueError, match=r"observer_off='9 steps' with start=2: QAT starts now, and the observers have"
    ):
        fit(TwoSteps(), qat(start=2, observer_off="9 steps"), loaders=(resumable(32), val_loader()))


def test_the_end_is_told_in_steps_too(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"start='5 steps', but the training ends after 3 epochs \(3 steps\): nothing"):
        fit(NoNoise(), qat(start="5 steps"), loaders=(resumable(32), val_loader()), accumulate_grad_batches=4)
