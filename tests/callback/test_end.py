"""What a run leaves: the right weights, logged figures, a table, an artifact; and nothing lost when that fails."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from lq.backends.prepare import state_of
from lq.callback import QATCallback
from lq.config.schedule import QATSchedule
from lq.core.checkpoint import from_bytes
from lq.data import DigitsDataModule
from lq.export.artifact.int8_model import load, load_prepared_state
from lq.models import DigitsClassifier, OptimizerConfig
from tests.callback.conftest import Fit
from tests.tiny import Tiny, Versioned, keeper, make_data, qat, train_loader, val_loader

needs_ema = pytest.mark.skipif(
    not hasattr(callbacks, "EMAWeightAveraging"), reason="Lightning averages weights this way since 2.6"
)


class Scores(Tiny):
    """Logs a score that tells which epoch is best."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = scores

    def on_validation_epoch_end(self) -> None:
        self.log("score", self.scores[self.trainer.current_epoch])


def _prepared(callback: QATCallback) -> dict[str, Any]:
    assert callback.deployment is not None
    assert callback.deployment.directory is not None
    return load_prepared_state(callback.deployment.directory)


def _manifest(callback: QATCallback) -> dict[str, Any]:
    assert callback.deployment is not None
    assert callback.deployment.directory is not None
    content: dict[str, Any] = json.loads((callback.deployment.directory / "lq.json").read_text())
    return content


# ---- which weights ----------------------------------------------------------------------------------------------


def _weights_of(path: str) -> dict[str, Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {key.removeprefix("model."): value for key, value in state.items() if "_extra_state" not in key}


def _assert_weights(callback: QATCallback, path: str) -> None:
    deployed = _prepared(callback)
    for key, value in _weights_of(path).items():
        assert torch.equal(deployed[key], value), key


def test_best_checkpoint_is_deployed(fit: Fit, tmp_path: Path) -> None:
    callback, checkpoint = qat(), keeper(tmp_path / "kept", monitor="score", mode="max")
    fit(Scores([1, 3, 2]), callback, checkpoint)
    assert "epoch=1" in checkpoint.best_model_path
    _assert_weights(callback, checkpoint.best_model_path)
    assert _manifest(callback)["weights"] == checkpoint.best_model_path


def test_best_checkpoint_may_lie_elsewhere(fit: Fit) -> None:
    callback, checkpoint = qat(), ModelCheckpoint("memory://kept", monitor="score", mode="max")
    fit(Scores([1, 3, 2]), callback, checkpoint)
    assert "epoch=1" in checkpoint.best_model_path
    assert _manifest(callback)["weights"] == checkpoint.best_model_path


def test_best_from_before_the_start_gives_the_last_weights(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, callback = Scores([9, 3, 2]), qat(start=1)
    with caplog.at_level("INFO"):
        fit(module, callback, keeper(tmp_path / "kept", monitor="score", mode="max"))
    assert torch.equal(_prepared(callback)["5.weight"], module.model.get_submodule("5").weight)
    assert "is from before QAT started, so the last weights are converted" in caplog.text
    assert _manifest(callback)["weights"] == "the last step"


def test_best_of_the_qat_checkpoints_where_several_are_kept(fit: Fit, tmp_path: Path) -> None:
    callback, checkpoint = qat(start=1), keeper(tmp_path / "kept", monitor="score", mode="max", save_top_k=-1)
    fit(Scores([9, 3, 2]), callback, checkpoint)
    best = next(path for path in checkpoint.best_k_models if "epoch=1" in path)
    _assert_weights(callback, best)


def test_best_checkpoint_keeps_the_versions_of_its_modules(fit: Fit, tmp_path: Path) -> None:
    module, callback, checkpoint = Versioned(), qat(), keeper(tmp_path / "kept", monitor="val_loss")
    fit(module, callback, checkpoint, max_epochs=1)
    assert _manifest(callback)["weights"] == checkpoint.best_model_path
    assert torch.equal(_prepared(callback)["6.factor"], module.model.get_submodule("6").factor)


def test_best_checkpoint_that_does_not_fit_leaves_the_last_weights(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, callback, checkpoint = Versioned(), qat(), keeper(tmp_path / "kept", monitor="val_loss")

    class Spoil(L.Callback):
        def on_train_end(self, *_: Any) -> None:
            content = torch.load(checkpoint.best_model_path, weights_only=True)
            content["state_dict"]["model.5.weight"] = torch.ones(1)
            torch.save(content, checkpoint.best_model_path)

    said = (
        r"lq: \S+kept\S+\.ckpt does not fit this model: .* size mismatch for model\.5.*lq takes the next best weights"
    )
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match=said):
        fit(module, callback, checkpoint, Spoil(), max_epochs=1)
    assert "is from before QAT started" not in caplog.text
    assert _manifest(callback)["weights"] == "the last step"
    for name, value in module.model.named_parameters():
        assert torch.equal(_prepared(callback)[name], value), name


def test_early_stopping(fit: Fit) -> None:
    callback = qat(freeze_bn="never", observer_off="never", lr=None)
    trainer = fit(Scores([1, 0, 0, 0, 0, 0]), callback, EarlyStopping("score", mode="max", patience=2), max_epochs=6)
    assert trainer.current_epoch == 3
    assert callback.deployment is not None


# ---- averaged weights -------------------------------------------------------------------------------------------


@needs_ema
def test_averaged_weights_are_deployed_with_true_ranges(fit: Fit, tmp_path: Path) -> None:
    module, callback, checkpoint = Tiny(), qat(start=1, lr=0.5), keeper(tmp_path / "kept")

    class Last(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            self.weight = pl_module.model.get_submodule("5").weight.detach().clone()
            self.min_val = state_of(pl_module.model).min_val.clone()

    last = Last()
    fit(module, callback, callbacks.EMAWeightAveraging(decay=0.5), checkpoint, last)
    deployed = _prepared(callback)
    assert not torch.equal(deployed["5.weight"], last.weight), "not averaged"
    assert torch.equal(deployed["5.weight"], module.model.get_submodule("5").weight)
    assert torch.equal(deployed["qat_state.min_val"], last.min_val)
    assert torch.isfinite(last.min_val).all()
    saved = torch.load(checkpoint.last_model_path, weights_only=True)["state_dict"]
    assert torch.equal(saved["model.qat_state.min_val"], last.min_val)
    assert from_bytes(saved["model.qat_state._extra_state"])["fake_quant"]


@needs_ema
def test_averaging_before_qat_is_refused(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"Put QATCallback first: callbacks=\[QATCallback\(\.\.\.\), EMAWeightAver"):
        fit(Tiny(), callbacks.EMAWeightAveraging(), qat())


# ---- what is said -----------------------------------------------------------------------------------------------


def test_logged_names_table_and_manifest(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = QATCallback(schedule=QATSchedule(start=1, freeze_bn=2, observer_off=3), int8_every_n_epochs=2)
    trainer = fit(Tiny(), callback, max_epochs=4)
    with (Path(trainer.log_dir or "") / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    epochs = {
        name: [int(row["epoch"]) for row in rows if row.get(name)]
        for name in (
            "qat/phase",
            "qat/lr_scale",
            "qat/fp32/accuracy",
            "qat/fake/accuracy",
            "qat/int8/accuracy",
            "qat/fp32/val_loss",
            "qat/int8/val_loss",
        )
    }
    assert epochs == {
        "qat/phase": [0, 1, 2, 3],
        "qat/lr_scale": [1, 2, 3],
        "qat/fp32/accuracy": [1],
        "qat/fake/accuracy": [1, 2, 3],
        "qat/int8/accuracy": [1, 3, 3],  # and of what was exported
        "qat/fp32/val_loss": [1],
        "qat/int8/val_loss": [1, 3, 3],
    }
    assert {"qat/int8_vs_fake/agreement", "qat/int8_vs_fake/sqnr_db"} <= rows[0].keys()
    assert callback.deployment is not None
    manifest = _manifest(callback)
    assert callback.deployment.directory == Path(trainer.log_dir or "") / "int8"
    assert manifest["results"]["fake"] == callback.deployment.results["fake"]
    assert [row["model"] for row in manifest["table"]] == ["FP32", "fake-quantized", "int8 torch"]
    printed = capsys.readouterr().out
    for row in manifest["table"]:
        line = next(line for line in printed.splitlines() if line.startswith(f" {row['model']} ") and ":" not in line)
        assert f"{row['metrics']['accuracy']:.4f}" in line
        if row["model"] != "fake-quantized":
            assert f"{row['latency_ms']:.2f}" in line
    assert "Validation" not in printed, "no progress bar in a log"
    points = {"start": 1, "freeze_bn": 2, "observer_off": 3}
    assert manifest["schedule"] == {**points, "lr": 0.01, "lr_final": 0.01, "scale_lr": 0.003, "calibration": None}
    assert manifest["plan"]["layers"][0]["name"] == "0"


def test_any_metric_collection_and_target_fn(fit: Fit) -> None:
    metric = torchmetrics.MetricCollection([torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError()])

    def one_hot(batch: Any) -> Tensor:
        return torch.nn.functional.one_hot(batch[1], 3).float()

    callback = QATCallback(metric=metric, target_fn=one_hot)
    trainer = fit(Tiny(), callback, max_epochs=1)
    assert {"qat/fake/MeanSquaredError", "qat/fp32/MeanAbsoluteError"} <= trainer.callback_metrics.keys()


def test_skipped_batches_are_reported(fit: Fit) -> None:
    data = [(x, y) for x, y in make_data()]
    data[9] = (torch.full((1, 6, 6), torch.inf), data[9][1])

    class Careful(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return torch.nan_to_num(super().training_step(batch, batch_idx)) * 0.0

        def on_after_backward(self) -> None:
            for parameter in self.parameters():
                parameter.grad = torch.zeros_like(parameter)

    loaders = (DataLoader(data, batch_size=8), val_loader())
    with pytest.warns(UserWarning, match=r"NaN or infinity reached fake quantizers.*\(1 batch\).*where to look"):
        fit(Careful(), qat(), max_epochs=1, loaders=loaders, limit_val_batches=0)


# ---- the user's own validation, once more at the end --------------------------------------------------------------


def test_validation_that_logs_images_and_reads_the_datamodule(fit: Fit, tmp_path: Path) -> None:
    class Data(L.LightningDataModule):
        shift = 1.0

        def train_dataloader(self) -> Any:
            return train_loader()

        def val_dataloader(self) -> Any:
            return val_loader()

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] + self.shift, batch[1]

    class Demanding(Tiny):
        seen: list[float] = []  # noqa: RUF012

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.logger.experiment.add_image("x", batch[0])  # type: ignore[union-attr]
            self.seen.append(float(batch[0].mean()) + self.trainer.datamodule.shift)  # type: ignore[attr-defined]

    class Experiment:
        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    class Board(L.pytorch.loggers.CSVLogger):
        @property
        def experiment(self) -> Any:
            return Experiment()

    callback = qat()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[callback], logger=Board(tmp_path), log_every_n_steps=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    Demanding.seen = []
    trainer.fit(Demanding(), datamodule=Data())
    assert callback.deployment is not None
    assert "torch" in callback.deployment.results
    passes = Demanding.seen[1:]  # the first one shows what the target is called with
    during = passes[:2]  # then FP32 is judged, and at the end what was trained and what was exported
    assert passes == pytest.approx(4 * during)


def test_validation_that_cannot_run_again_costs_only_metrics(fit: Fit) -> None:
    class Once(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            assert self.trainer.max_epochs == 1, "not my trainer"

    callback = qat()
    with pytest.warns(UserWarning, match="could not be evaluated on the validation data.*not my trainer"):
        fit(Once(), callback, max_epochs=1)
    assert callback.deployment is not None
    assert callback.deployment.directory is not None
    load(callback.deployment.directory)(torch.randn(2, 1, 6, 6))
    assert callback.deployment.rows[-1]["sqnr_db"] > 30


def test_failing_conversion_keeps_what_was_trained(fit: Fit, tmp_path: Path) -> None:
    class Spoil(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            state_of(pl_module.model).min_val.fill_(torch.inf)
            state_of(pl_module.model).max_val.fill_(-torch.inf)

    module, checkpoint = Tiny(), keeper(tmp_path / "kept")
    with pytest.raises(RuntimeError, match=r"int8 model could not be exported as 'torch'.*else is in"):
        fit(module, qat(), checkpoint, Spoil(), max_epochs=1)
    assert Path(checkpoint.last_model_path).is_file()
    (directory,) = tmp_path.rglob("int8")
    assert torch.equal(load_prepared_state(directory)["5.weight"], module.model.get_submodule("5").weight)
    with pytest.raises(FileNotFoundError, match="holds no int8 model, because it could not be made"):
        load(directory)


def test_a_training_that_diverged_is_told_as_that_and_the_older_artifact_stays(fit: Fit, tmp_path: Path) -> None:
    class Diverge(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            torch.nn.init.constant_(pl_module.model.get_parameter("5.bias"), torch.nan)

    place = str(tmp_path / "int8")
    fit(Tiny(), QATCallback(export_dir=place), max_epochs=1)
    before = (tmp_path / "int8" / "lq.json").read_bytes()
    with pytest.raises(ValueError, match=r"5\.bias of .* holds NaN or infinity.*before the training diverged"):
        fit(Tiny(), QATCallback(export_dir=place), Diverge(), max_epochs=1)
    assert (tmp_path / "int8" / "lq.json").read_bytes() == before


def test_what_was_best_before_the_training_diverged_is_delivered(fit: Fit, tmp_path: Path) -> None:
    class Diverge(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                torch.nn.init.constant_(pl_module.model.get_parameter("5.bias"), torch.nan)

    callback = QATCallback(export_dir=str(tmp_path / "int8"), int8_every_n_epochs=1)
    best = ModelCheckpoint(tmp_path / "kept", monitor="val_loss")
    with pytest.warns(UserWarning, match=r"lq: no figures of int8: .* of the model holds NaN"):
        fit(Tiny(), callback, best, Diverge(), max_epochs=2)
    assert load(tmp_path / "int8")(make_data()[:4][0]).isfinite().all()


# ---- a model that really trained ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[QATCallback, DigitsClassifier]:
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lq.timing.stopwatch.SECONDS", 0.05)
        L.seed_everything(0, verbose=False)
        callback = QATCallback(schedule=QATSchedule(start=6), export_dir=str(folder / "int8"))
        module = DigitsClassifier(width=8, optimizer=OptimizerConfig(name="adamw", lr=0.01))
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=10, callbacks=[callback], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, DigitsDataModule(batch_size=64))
    return callback, module


def test_trained_model_and_its_int8_model_agree(digits: tuple[QATCallback, DigitsClassifier]) -> None:
    deployment = digits[0].deployment
    assert deployment is not None
    results = deployment.results
    assert results["fp32"]["accuracy"] > 0.95
    assert results["torch"]["accuracy"] > results["fp32"]["accuracy"] - 0.01
    assert results["torch_vs_fake"]["agreement"] >= 0.998
    assert results["torch_vs_fake"]["sqnr_db"] >= 39


def test_artifact_runs_in_a_process_without_the_training_code(
    digits: tuple[QATCallback, DigitsClassifier], tmp_path: Path
) -> None:
    deployment = digits[0].deployment
    assert deployment is not None
    x = torch.rand(32, 1, 8, 8)
    with torch.no_grad():
        torch.save({"x": x, "y": deployment.models["torch"](x)}, tmp_path / "call.pt")
    code = (
        "import sys, torch, lq\n"
        f"call = torch.load({str(tmp_path / 'call.pt')!r}, weights_only=True)\n"
        f"model = lq.load({str(deployment.directory)!r})\n"
        "assert torch.equal(model(call['x']), call['y'])\n"
        "assert not [m for m in sys.modules if m.startswith(('lightning', 'lq.models', 'lq.callback'))]\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
