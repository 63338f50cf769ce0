"""Crash, resume and equal weights, in every phase; checkpoints of all kinds into fresh modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lq.backends.prepare import state_of
from lq.callback import QATCallback
from lq.export.artifact.int8_model import load
from tests.callback.conftest import Fit
from tests.tiny import (
    RESUMES_MID_EPOCH,
    WEIGHTS_ONLY,
    NoNoise,
    Tiny,
    keeper,
    make_trainer,
    qat,
    resumable,
    train_loader,
    val_loader,
)

# A checkpoint is taken up by a trainer that keeps its own elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

# start, observers off, BatchNorm frozen: an epoch each, and one more
SCHEDULE: dict[str, Any] = {"start": 1, "observer_off": 2, "freeze_bn": 3, "lr": 0.5}
EPOCHS = 5


class Crash(L.Callback):
    def __init__(self, epoch: int, batch: int) -> None:
        self.epoch, self.batch = epoch, batch

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            raise RuntimeError("the power went out")


class Record(L.Callback):
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.lrs: dict[int, float] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.lrs[trainer.global_step] = optimizer.param_groups[0]["lr"]


def _whole_run(tmp_path: Path) -> tuple[L.Trainer, NoNoise, Record]:
    torch.manual_seed(1)
    module, record = NoNoise(), Record()
    trainer = make_trainer(tmp_path, qat(**SCHEDULE), record, max_epochs=EPOCHS)
    trainer.fit(module, resumable(), val_loader())
    return trainer, module, record


def _assert_equal(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_equal(x, y, f"{where}[{index}]")
    else:
        assert a == b, where


@pytest.mark.parametrize("every_n_train_steps", [None, 2], ids=["epoch end", "mid-epoch"])
@pytest.mark.parametrize("epoch", [1, 2, 3, 4], ids=["before start", "observing", "observers off", "frozen"])
def test_resumed_run_is_bit_equal(tmp_path: Path, epoch: int, every_n_train_steps: int | None) -> None:
    if every_n_train_steps and not RESUMES_MID_EPOCH:
        pytest.skip("this Lightning cannot resume in the middle of an epoch")
    expected_trainer, expected, expected_lrs = _whole_run(tmp_path)
    torch.manual_seed(1)
    kept = tmp_path / "kept"
    with pytest.raises(RuntimeError, match="the power went out"):
        make_trainer(
            tmp_path,
            qat(**SCHEDULE),
            keeper(kept, every_n_train_steps=every_n_train_steps),
            Crash(epoch, 1),
            max_epochs=EPOCHS,
        ).fit(NoNoise(), resumable(), val_loader())
    torch.manual_seed(99)
    module, record, callback = NoNoise(), Record(), qat(**SCHEDULE)
    again = keeper(tmp_path / "again", every_n_train_steps=every_n_train_steps)
    trainer = make_trainer(tmp_path, callback, again, record, max_epochs=EPOCHS)
    trainer.fit(module, resumable(), val_loader(), ckpt_path=kept / "last.ckpt", **WEIGHTS_ONLY)
    assert trainer.global_step == EPOCHS * 3
    _assert_equal(module.state_dict(), expected.state_dict(), "module")
    _assert_equal(trainer.optimizers[0].state_dict(), expected_trainer.optimizers[0].state_dict(), "optimizer")
    assert record.lrs.items() <= expected_lrs.lrs.items()
    assert callback.deployment is not None
    fp32 = callback.deployment.rows[0]
    assert fp32["model"] == "FP32"
    assert fp32["size_mb"] > 0


def test_resumed_run_remembers_the_float_figures(tmp_path: Path) -> None:
    first, kept = qat(**SCHEDULE), tmp_path / "kept"
    trainer = make_trainer(tmp_path, first, keeper(kept), max_epochs=EPOCHS, limit_train_batches=1)
    trainer.fit(NoNoise(), train_loader(), val_loader())
    callback = qat(**SCHEDULE)
    trainer = make_trainer(tmp_path, callback, keeper(tmp_path / "b"), max_epochs=EPOCHS + 1, limit_train_batches=1)
    trainer.fit(NoNoise(), train_loader(), val_loader(), ckpt_path=kept / "last.ckpt")
    assert first.deployment is not None
    assert callback.deployment is not None
    assert callback.deployment.results["fp32"] == first.deployment.results["fp32"]


def _ended(tmp_path: Path, module: Tiny) -> Path:
    """The checkpoint of a run that was killed while it deployed."""
    trainer = make_trainer(tmp_path, qat(**SCHEDULE), keeper(tmp_path / "kept"), max_epochs=EPOCHS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lq.callback.qat.deploy_best", _killed)
        with pytest.raises(SystemExit):
            trainer.fit(module, train_loader(), val_loader())
    return tmp_path / "kept" / "last.ckpt"


def _killed(*_: Any, **__: Any) -> None:
    raise SystemExit


def test_run_that_died_while_it_deployed_deploys_when_it_is_resumed(tmp_path: Path) -> None:
    trained = NoNoise()
    path = _ended(tmp_path, trained)
    module, callback = NoNoise(), qat(**SCHEDULE)
    trainer = make_trainer(tmp_path / "b", callback, keeper(tmp_path / "unused"), max_epochs=EPOCHS)
    trainer.fit(module, train_loader(), val_loader(), ckpt_path=path)
    _assert_equal(module.state_dict(), trained.state_dict())
    assert callback.deployment is not None
    assert {"fake", "torch"} <= callback.deployment.results.keys()
    assert callback.deployment.directory is not None
    load(callback.deployment.directory)(torch.randn(2, 1, 6, 6))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_and_without_validation_data_it_needs_an_example(tmp_path: Path) -> None:
    path = _ended(tmp_path, NoNoise())
    module, callback = NoNoise(), qat(**SCHEDULE)
    trainer = make_trainer(tmp_path / "b", callback, keeper(tmp_path / "unused"), max_epochs=EPOCHS)
    with pytest.raises(ValueError, match=r"over when it was resumed.*Set example_input_array of NoNoise"):
        trainer.fit(module, train_loader(), ckpt_path=path)
    module = NoNoise()
    module.example_input_array = torch.zeros(2, 1, 6, 6)
    trainer = make_trainer(tmp_path / "c", callback, keeper(tmp_path / "unused"), max_epochs=EPOCHS)
    trainer.fit(module, train_loader(), ckpt_path=path)
    assert callback.deployment is not None


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_qat_checkpoint_into_a_fresh_module(tmp_path: Path, verb: str) -> None:
    module = Tiny()
    trainer = make_trainer(tmp_path, qat(), keeper(tmp_path / "kept"), max_epochs=2)
    trainer.fit(module, train_loader(), val_loader())
    fresh = Tiny()
    trainer = make_trainer(tmp_path, qat(), keeper(tmp_path / "unused"))
    results = getattr(trainer, verb)(fresh, val_loader(), ckpt_path=tmp_path / "kept" / "last.ckpt", **WEIGHTS_ONLY)
    assert state_of(fresh.model).fake_quant
    _assert_equal(fresh.state_dict(), module.state_dict())
    if verb == "predict":
        with torch.no_grad():
            x = torch.cat([x for x, _ in val_loader()])
            assert torch.equal(torch.cat(results), module.eval()(x))
    if verb == "validate":
        assert "qat/fake/accuracy" in results[0]


def test_float_checkpoint_is_where_qat_starts(tmp_path: Path) -> None:
    trained = NoNoise(None)
    trainer = make_trainer(tmp_path, keeper(tmp_path / "float"), max_epochs=2)
    trainer.fit(trained, train_loader(), val_loader())
    module, callback = NoNoise(None), qat(start=2)
    trainer = make_trainer(tmp_path, callback, keeper(tmp_path / "qat"), max_epochs=3)
    trainer.fit(module, train_loader(), val_loader(), ckpt_path=tmp_path / "float" / "last.ckpt", **WEIGHTS_ONLY)
    assert trainer.global_step == 9
    assert callback.deployment is not None
    float_model: Any = callback._float.model
    _assert_equal(dict(float_model.state_dict()), dict(trained.model.state_dict()))


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_float_checkpoint_that_leaves_no_epochs_for_qat_is_refused(tmp_path: Path, epochs: int) -> None:
    trainer = make_trainer(tmp_path, keeper(tmp_path / "float"), max_epochs=2)
    trainer.fit(Tiny(), train_loader(), val_loader())
    trainer = make_trainer(tmp_path, qat(), keeper(tmp_path / "qat"), max_epochs=epochs)
    with pytest.raises(ValueError, match=f"after 2 epochs, .* max_epochs={epochs} leaves nothing .* max_epochs=3"):
        trainer.fit(Tiny(), train_loader(), val_loader(), ckpt_path=tmp_path / "float" / "last.ckpt", **WEIGHTS_ONLY)


def test_float_weights_loaded_before_the_fit(fit: Fit) -> None:
    trained, module, callback = NoNoise(), NoNoise(), qat()
    fit(trained, max_epochs=1)
    module.load_state_dict(trained.state_dict())
    fit(module, callback, max_epochs=1)
    float_model: Any = callback._float.model
    _assert_equal(dict(float_model.state_dict()), dict(trained.model.state_dict()))


def test_float_checkpoint_validates_as_float(tmp_path: Path) -> None:
    trained = Tiny()
    trainer = make_trainer(tmp_path, keeper(tmp_path / "float"), max_epochs=1)
    trainer.fit(trained, train_loader(), val_loader())
    fresh = Tiny()
    trainer = make_trainer(tmp_path, qat(), keeper(tmp_path / "unused"))
    results = trainer.validate(fresh, val_loader(), ckpt_path=tmp_path / "float" / "last.ckpt", verbose=False)
    assert results[0].keys() == {"val_loss"}
    with torch.no_grad():
        x = torch.randn(4, 1, 6, 6)
        assert torch.allclose(fresh.eval()(x), trained.eval()(x), atol=1e-6)  # BatchNorm is fused, not folded: rounding


def test_checkpoint_of_another_plan_is_refused(tmp_path: Path) -> None:
    from lq.config.qconfig import QConfig

    trainer = make_trainer(tmp_path, qat(), keeper(tmp_path / "kept"), max_epochs=1)
    trainer.fit(Tiny(), train_loader(), val_loader())
    other = QATCallback(qconfig=QConfig(exclude=("5",)))
    with pytest.raises(Exception, match="prepared with another"):
        make_trainer(tmp_path, other, keeper(tmp_path / "unused")).fit(
            Tiny(), train_loader(), val_loader(), ckpt_path=tmp_path / "kept" / "last.ckpt"
        )


def test_a_checkpoint_without_ranges_is_refused_however_loosely_it_is_loaded(fit: Fit, tmp_path: Path) -> None:
    fit(Tiny(), qat(), keeper(tmp_path / "kept"), max_epochs=1)
    content = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)
    del content["state_dict"]["model.qat_state.max_val"]
    torch.save(content, tmp_path / "less.ckpt")
    module = Tiny()
    module.strict_loading = False
    with pytest.raises(ValueError, match=r"lacks model\.qat_state\.max_val: the ranges of QAT"):
        fit(module, qat(), keeper(tmp_path / "unused"), ckpt_path=tmp_path / "less.ckpt")


class Rates(L.Callback):
    """Whether each step is quantized, and its learning rate."""

    def __init__(self, stop: int | None = None) -> None:
        self.rows: dict[int, tuple[bool, float]] = {}
        self.stop = stop

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == self.stop:
            raise RuntimeError("the power went out")
        quantized = state_of(pl_module.model).fake_quant
        self.rows[trainer.global_step] = quantized, trainer.optimizers[0].param_groups[0]["lr"]


def _stopped_and_resumed(folder: Path, first: dict[str, Any], second: dict[str, Any], epochs: int) -> Rates:
    trainer = make_trainer(folder, qat(**first), Rates(stop=3), keeper(folder / "kept"), max_epochs=4)
    with pytest.raises(RuntimeError, match="the power went out"):
        trainer.fit(Tiny(), train_loader(), val_loader())
    rates = Rates()
    trainer = make_trainer(folder, qat(**second), rates, max_epochs=epochs)
    trainer.fit(Tiny(), train_loader(), val_loader(), ckpt_path=folder / "kept" / "last.ckpt")
    return rates


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("start", [1, 2, 5])
def test_another_start_changes_nothing_where_qat_has_begun(
    tmp_path: Path, start: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Rates()
    make_trainer(tmp_path, qat(start=2), whole, max_epochs=6).fit(Tiny(), train_loader(), val_loader())
    with caplog.at_level("INFO"):
        resumed = _stopped_and_resumed(tmp_path, {"start": 2}, {"start": start}, 6)
    assert resumed.rows.items() <= whole.rows.items()
    assert min(resumed.rows) == 9
    told = f"QAT has begun, with schedule.start=2, and goes on from there; start={start} changes nothing"
    assert (told in caplog.text) is (start != 2)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_qat_stays_on_in_a_longer_training_of_which_its_start_is_a_share(tmp_path: Path) -> None:
    resumed = _stopped_and_resumed(tmp_path, {"start": 0.5}, {"start": 0.5}, 12)
    assert all(quantized for quantized, _ in resumed.rows.values())
    rates = [rate for _, rate in resumed.rows.values()]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(0.001, rel=0.05), "QAT has a tenth of its way behind it"
