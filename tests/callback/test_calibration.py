"""Ranges from the training data before QAT: by default where activations have few bits, and on request."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

import lq
from lq.backends.prepare import state_of
from lq.callback import QATCallback
from lq.callback.calibration import BATCHES
from lq.config.qconfig import QConfig
from lq.config.schedule import QATSchedule
from lq.config.specs import ActivationSpec
from lq.ptq import calibrate
from tests.callback.conftest import Fit
from tests.tiny import NoNoise, Tiny, make_data, train_loader

FOUR = QConfig(activation=ActivationSpec(0, 15))


class Watch(Callback):
    """The phase and the ranges of every step, as it begins."""

    def __init__(self) -> None:
        self.flags: list[tuple[bool, bool]] = []
        self.ranges: list[Tensor] = []
        self.random: list[float] = []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        state = pl_module.model.qat_state
        self.flags.append((state.fake_quant, state.observer))
        self.ranges.append(torch.stack([state.min_val, state.max_val]).clone())
        self.random.append(float(torch.rand(())))


def test_few_bits_are_calibrated_on_training_data_and_held(fit: Fit) -> None:
    watch, module = Watch(), Tiny()
    net = copy.deepcopy(module.model)
    fit(module, QATCallback(qconfig=FOUR, schedule=QATSchedule(lr=None)), watch, max_epochs=2)
    assert set(watch.flags) == {(True, False)}
    for found in watch.ranges:
        assert torch.equal(found, watch.ranges[0])
    twin = lq.prepare(net, QConfig(activation=ActivationSpec(0, 15, observer="histogram")))
    calibrate(twin, DataLoader(make_data(), 8), limit=BATCHES, show_progress=False)
    twin.qat_state.settle()
    expected = torch.stack([twin.qat_state.min_val, twin.qat_state.max_val])
    torch.testing.assert_close(watch.ranges[0], expected, rtol=1e-4, atol=1e-5)


def test_eight_bits_follow_their_ranges_as_before(fit: Fit) -> None:
    watch = Watch()
    fit(Tiny(), QATCallback(schedule=QATSchedule(lr=None)), watch, max_epochs=2)
    assert watch.flags[0] == (True, True)
    assert watch.flags[-1] == (True, False)
    assert not torch.isfinite(watch.ranges[0]).any()


def test_on_request_and_from_a_later_start_with_the_weights_of_then(fit: Fit) -> None:
    watch = Watch()
    schedule = QATSchedule(start=1, observer_off=1, calibration=4, lr=None)
    fit(Tiny(), QATCallback(schedule=schedule), watch, max_epochs=2)
    half = len(watch.flags) // 2
    assert set(watch.flags[:half]) == {(False, False)}
    assert set(watch.flags[half:]) == {(True, False)}
    assert torch.isfinite(watch.ranges[-1]).all()


def test_observers_may_go_on_from_calibrated_ranges(fit: Fit) -> None:
    watch = Watch()
    fit(Tiny(), QATCallback(qconfig=FOUR, schedule=QATSchedule(observer_off=1, lr=None)), watch, max_epochs=2)
    assert watch.flags[0] == (True, True)
    assert watch.flags[-1] == (True, False)
    assert torch.isfinite(watch.ranges[0]).all()
    assert not torch.equal(watch.ranges[0], watch.ranges[-1])


def test_none_at_all_if_not_wanted(fit: Fit) -> None:
    watch = Watch()
    fit(Tiny(), QATCallback(qconfig=FOUR, schedule=QATSchedule(calibration=0, lr=None)), watch, max_epochs=1)
    assert watch.flags[0] == (True, True)


def test_calibration_uses_no_random_number_of_the_training(fit: Fit) -> None:
    drawn = []
    for calibration in (0, 4):
        torch.manual_seed(3)
        watch = Watch()
        fit(Tiny(), QATCallback(schedule=QATSchedule(calibration=calibration, lr=None)), watch, max_epochs=1)
        drawn.append(watch.random)
    assert drawn[0] == drawn[1]


def test_nor_of_a_generator_of_its_loader(fit: Fit) -> None:
    drawn = []
    for calibration in (0, 4):
        loader = DataLoader(make_data(), batch_size=8, shuffle=True, generator=torch.Generator())
        callback = QATCallback(schedule=QATSchedule(calibration=calibration, start=1))
        fit(NoNoise(), callback, loaders=(loader, train_loader()))
        drawn.append(loader.generator.get_state())
    assert torch.equal(*drawn)


def test_an_observer_of_the_users_choice_stays(fit: Fit) -> None:
    watch = Watch()
    qconfig = QConfig(activation=ActivationSpec(0, 15, observer="minmax"))
    fit(Tiny(), QATCallback(qconfig=qconfig, schedule=QATSchedule(lr=None)), watch, max_epochs=1)
    x = make_data().tensors[0]
    assert float(watch.ranges[0][1, 0]) == pytest.approx(float(x.max()), rel=1e-5)


class FirstOfSeveral(Tiny):
    """Trains on batches of several loaders at once."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch[0], batch_idx)


def test_each_of_several_loaders_gives_its_share(fit: Fit) -> None:
    day, night = (DataLoader([(torch.full((1, 6, 6), x), 0)] * 32, batch_size=4) for x in (1.0, 9.0))  # type: ignore[arg-type]
    watch = Watch()
    schedule = QATSchedule(calibration=4, lr=None)
    fit(FirstOfSeveral(), QATCallback(schedule=schedule), watch, loaders=([day, night], DataLoader(make_data(), 8)))
    assert watch.ranges[0][1, 0] == 9


class Once(IterableDataset[Any]):
    """A stream that can be gone through only once."""

    def __init__(self) -> None:
        self.items = iter([make_data()[i] for i in range(16)])

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self.items)


def test_a_stream_is_left_to_the_training(fit: Fit) -> None:
    watch = Watch()
    train, val = DataLoader(Once(), 4), DataLoader(make_data(), 8)
    with pytest.warns(UserWarning, match=r"could not be calibrated before QAT \(ValueError: .*gone through only once"):
        fit(
            Tiny(), QATCallback(qconfig=FOUR, schedule=QATSchedule("0 steps", "3 steps", "2 steps", None)), watch,
            loaders=(train, val), max_epochs=1,
        )  # fmt: skip
    assert watch.flags[0] == (True, True)
    assert len(watch.flags) == 4


class Fails(Tiny):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if len(batch) == 2 and batch[0].shape[0] == 5:
            raise KeyError("not for training batches")
        super().validation_step(batch, batch_idx)


def test_a_step_that_cannot_take_training_batches_leaves_it_to_the_training(fit: Fit) -> None:
    watch = Watch()
    loaders = (DataLoader(make_data(), 5, drop_last=True), DataLoader(make_data(), 8))
    schedule = QATSchedule(observer_off=0, calibration=2, lr=None)
    with pytest.warns(UserWarning, match=r"could not be calibrated .*KeyError: 'not for training batches'"):
        fit(Fails(), QATCallback(schedule=schedule), watch, loaders=loaders, max_epochs=2)
    assert watch.flags[0] == (True, True)
    assert watch.flags[-1] == (True, False)


def test_a_resumed_run_keeps_the_ranges_of_the_checkpoint(fit: Fit, tmp_path: Any) -> None:
    first, module = Watch(), Tiny()
    trainer = fit(module, QATCallback(qconfig=FOUR, schedule=QATSchedule(lr=None)), first, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Watch()
    schedule = QATSchedule(lr=None)
    fit(
        Tiny(), QATCallback(qconfig=FOUR, schedule=schedule), again, max_epochs=2, ckpt_path=tmp_path / "last.ckpt"
    )  # fmt: skip
    assert torch.equal(again.ranges[0], first.ranges[0])
    assert set(again.flags) == {(True, False)}


class OtherBatches(NoNoise):
    """Its validation batches are dicts, so its training batches cannot be validated."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.model(batch["x"]), batch["y"]))


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_run_goes_on_observing_where_nothing_could_be_calibrated(fit: Fit, tmp_path: Path) -> None:
    pairs = list(make_data())
    loaders = train_loader(), DataLoader([{"x": x, "y": y} for x, y in pairs], batch_size=8)

    def run(ckpt_path: Path | None = None) -> NoNoise:
        torch.manual_seed(0)
        module = OtherBatches()
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="lq: ranges could not be calibrated", category=UserWarning)
            fit(module, QATCallback(qconfig=FOUR), saving, loaders=loaders, max_epochs=4, ckpt_path=ckpt_path)
        return module

    whole, resumed = run(), run(tmp_path / "epoch=0.ckpt")
    assert all(map(torch.equal, _tensors(whole), _tensors(resumed)))


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_ranges_are_calibrated_in_any_precision(fit: Fit, precision: str) -> None:
    module = NoNoise(None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="lq: ranges could not be calibrated", category=UserWarning)
        fit(module, QATCallback(qconfig=FOUR), precision=precision, max_epochs=1)
    assert all(state_of(module.model).observed())


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
