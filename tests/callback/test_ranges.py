"""What is logged of the ranges: the right figures, few of them, and none of it in a training step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lq.analysis.ranges import activation_scales, range_statistics, range_summary
from lq.callback import QATCallback
from lq.checkpoints.checkpoint import Checkpoint
from lq.config.schedule import QATSchedule
from lq.console import FOR_LOGGERS as PREFIX
from lq.report.history import read_history
from lq.report.plots import plot_learning_rate, plot_metric, plot_scale_drift
from tests.callback.conftest import Fit
from tests.tiny import (
    RESUMES_MID_EPOCH,
    NoNoise,
    Tiny,
    keeper,
    make_trainer,
    resumable,
    train_loader,
    val_loader,
)

SUMMARY = {"qat/ranges/saturated_max", "qat/ranges/used_levels_min", "qat/ranges/dead", "qat/ranges/scale_drift_max"}
SCHEDULE = QATSchedule(start=1, observer_off="never", lr=0.5)


def callback(log_ranges: Any = "summary", schedule: QATSchedule = SCHEDULE) -> QATCallback:
    return QATCallback(schedule=schedule, log_ranges=log_ranges)


class Watcher(L.Callback):
    """The scales after each epoch, the statistics on the first validation batch, and hooks during steps."""

    def __init__(self) -> None:
        self.scales: list[dict[str, float]] = []
        self.summaries: list[dict[str, float]] = []
        self.hooks: set[int] = set()

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch >= 1:
            self.summaries.append(range_summary(range_statistics(pl_module.model, val_loader(), limit=1)))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.scales.append(activation_scales(pl_module.model))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.hooks.add(sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in pl_module.model.modules()))


def test_figures_are_those_of_the_first_validation_batch_and_of_the_epoch(fit: Fit, tmp_path: Path) -> None:
    watcher = Watcher()
    trainer = fit(Tiny(), callback(schedule=QATSchedule(start=1, observer_off=3, lr=0.5)), watcher, max_epochs=4)
    rows = read_history(trainer.log_dir or "")
    logged = {key: [row[key] for row in rows if key in row] for key in SUMMARY}
    assert {key for row in rows for key in row if key.startswith(PREFIX)} == SUMMARY
    for key in ("saturated_max", "used_levels_min", "dead"):
        assert logged[PREFIX + key] == pytest.approx([summary[key] for summary in watcher.summaries]), key
    a, b, c = watcher.scales[1:]
    drifts = [max(abs(after[name] / before[name] - 1) for name in before) for before, after in ((a, b), (b, c))]
    assert logged[PREFIX + "scale_drift_max"] == pytest.approx(drifts)
    assert drifts[0] > 0
    assert drifts[1] == 0, "observers are off"
    assert watcher.hooks == {0}


def test_each_activation_on_request_and_in_the_loggers_only(fit: Fit) -> None:
    pytest.importorskip("matplotlib")
    trainer = fit(Tiny(), callback("tensors"), max_epochs=3)
    rows = read_history(trainer.log_dir or "")
    keys = {key for row in rows for key in row}
    for tensor in ("input_1", "0", "5"):
        assert {f"qat/scale/{tensor}", f"qat/saturated/{tensor}", f"qat/used_levels/{tensor}"} <= keys
    assert not any("scale/" in key for key in trainer.callback_metrics)
    assert len(plot_scale_drift(rows).axes[0].lines) == 4


def test_nothing_on_request(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lq.callback.ranges.RangeListener", None)
    trainer = fit(Tiny(), callback(None), max_epochs=2)
    assert not any(key.startswith(PREFIX) for key in trainer.callback_metrics)


def test_without_validation_the_scales_are_watched(fit: Fit) -> None:
    class NoValidation(Tiny):
        validation_step = L.LightningModule.validation_step

    trainer = fit(NoValidation(), callback(), loaders=(train_loader(), None), max_epochs=3)
    assert {key for key in trainer.callback_metrics if key.startswith(PREFIX)} == {"qat/ranges/scale_drift_max"}


def test_the_history_goes_on_where_a_run_was_broken_off(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    kept = keeper(tmp_path / "kept")
    make_trainer(tmp_path, callback(), kept, max_epochs=3, limit_train_batches=2).fit(
        Tiny(), train_loader(), val_loader()
    )
    again = callback()
    trainer = make_trainer(tmp_path, again, keeper(tmp_path / "again"), max_epochs=5, limit_train_batches=2)
    with pytest.warns(UserWarning, match="The dirpath has changed"):
        trainer.fit(Tiny(), train_loader(), val_loader(), ckpt_path=kept.last_model_path)
    history = Checkpoint.read(tmp_path / "again" / "last.ckpt").entry.history
    assert [row["epoch"] for row in history if "qat/scale/input_1" in row] == [1, 2, 3, 4]
    assert [row["epoch"] for row in history if "qat/fake/accuracy" in row] == [1, 2, 3, 4]
    for plot in (plot_metric, plot_learning_rate, plot_scale_drift):
        assert plot(history).axes
    first = next(row for row in read_history(trainer.log_dir or "") if "qat/ranges/scale_drift_max" in row)
    assert first["epoch"] == 3, "the scales of the epoch before are known"


class Crash(L.Callback):
    """Dies before a batch of the fourth epoch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (3, self.batch):
            raise RuntimeError("the power went out")


def _drifts(trainer: L.Trainer) -> dict[float, float]:
    key = "qat/ranges/scale_drift_max"
    return {row["epoch"]: row[key] for row in read_history(trainer.log_dir or "") if key in row}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize(
    "settings", [{"every_n_train_steps": 1}, {"every_n_train_steps": 3}, {"monitor": "val_loss", "save_top_k": -1}]
)
def test_a_run_that_was_broken_off_logs_the_same_drift(tmp_path: Path, settings: dict[str, Any], batch: int) -> None:
    """Also if the checkpoint is of the last batch of an epoch, whose end Lightning then leaves out."""
    if not RESUMES_MID_EPOCH:
        pytest.skip("this Lightning cannot resume in the middle of an epoch")

    def run(folder: str, *more: Any, ckpt_path: Path | None = None) -> dict[float, float]:
        torch.manual_seed(1)
        kept = keeper(tmp_path / folder / "kept", **settings)
        trainer = make_trainer(tmp_path / folder, callback(), kept, *more, max_epochs=6)
        try:
            trainer.fit(NoNoise(), resumable(), val_loader(), ckpt_path=ckpt_path)
        except RuntimeError:
            assert more
        trainer.save_checkpoint(tmp_path / folder / "end.ckpt")
        return _drifts(trainer)

    whole = run("whole")
    assert set(whole) == {2, 3, 4, 5}
    run("first", Crash(batch))
    again = run("second", ckpt_path=tmp_path / "first" / "kept" / "last.ckpt")
    assert again.items() <= whole.items()
    assert {3, 4, 5} <= set(again)
    rows = [
        [(row["epoch"], row["step"], row["qat/scale/input_1"]) for row in history if "qat/scale/input_1" in row]
        for history in (Checkpoint.read(tmp_path / folder / "end.ckpt").entry.history for folder in ("whole", "second"))
    ]
    assert rows[0] == rows[1]


def test_an_exception_leaves_no_hooks(fit: Fit) -> None:
    class Breaks(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])
            if self.trainer.current_epoch == 1:
                raise ZeroDivisionError

    module = Breaks()
    with pytest.raises(ZeroDivisionError):
        fit(module, callback(), max_epochs=2)
    assert not any(m._forward_pre_hooks for m in module.model.modules())


def test_an_unknown_detail_is_refused() -> None:
    with pytest.raises(ValueError, match="log_ranges='all' is unknown; choose 'summary', 'tensors'"):
        callback("all")


def test_the_module_itself_as_target(fit: Fit) -> None:
    class Direct(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(36, 8), torch.nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.second(torch.relu(self.first(x.flatten(1))))
            return y

        training_step, validation_step = Tiny.training_step, Tiny.validation_step

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = fit(Direct(), callback(), max_epochs=3)
    assert trainer.callback_metrics.keys() >= SUMMARY
