"""The module's own validation judges FP32, fake-quantized and int8: any task, nothing to configure."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from torchmetrics import MeanMetric

from lq.callback import QATCallback
from lq.config.schedule import QATSchedule
from lq.export.parity.gate import Gate
from tests.callback.conftest import Fit
from tests.tiny import Tiny, make_data, make_trainer, qat, train_loader, val_loader


def results(callback: QATCallback) -> dict[str, dict[str, float]]:
    assert callback.deployment is not None
    return callback.deployment.results


def loaders(*tensors: Tensor) -> tuple[DataLoader[Any], DataLoader[Any]]:
    data = TensorDataset(*tensors)
    return DataLoader(data, batch_size=8), DataLoader(data, batch_size=8)


class Segmenter(L.LightningModule):
    """Every pixel has a class, and the batch an index that is no label; the figure is computed at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
        self.counts = torch.zeros(2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def on_validation_epoch_start(self) -> None:
        self.counts = torch.zeros(2)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        found, wanted = self.net(batch[0]).argmax(1) == 1, batch[1] == 1
        self.counts += torch.stack([(found & wanted).sum(), (found | wanted).sum()])

    def on_validation_epoch_end(self) -> None:
        self.log("val_iou", self.counts[0] / self.counts[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.02)


def iou(predict: Any, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        found = predict(x).argmax(1) == 1
    return float((found & (y == 1)).sum() / (found | (y == 1)).sum())


def test_segmentation_by_its_own_figure_with_no_argument(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0.5).long()
    module, callback = Segmenter(), qat(start=1, lr=0.5)
    floats: dict[str, float] = {}

    class Float(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 0:
                floats["iou"] = iou(pl_module.net.eval(), x, y)
                pl_module.net.train()

    trainer = fit(module, callback, Float(), max_epochs=3, loaders=loaders(x, y, torch.arange(32)))
    found = results(callback)
    assert found["fp32"] == pytest.approx({"val_iou": floats["iou"]})
    assert found["fake"] == pytest.approx({"val_iou": float(trainer.callback_metrics["val_iou"])})
    assert callback.deployment is not None
    assert found["torch"] == pytest.approx({"val_iou": iou(callback.deployment.models["torch"], x, y)})
    assert float(trainer.callback_metrics["qat/fp32/val_iou"]) == found["fp32"]["val_iou"]
    assert float(trainer.callback_metrics["qat/int8/val_iou"]) == found["torch"]["val_iou"]
    assert "val_iou" in capsys.readouterr().out


class Collects(Tiny):
    """Collects over the epoch, and clears behind it, in the three ways that people write."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.logged, self.losses = MeanMetric(), MeanMetric(), []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss)
        self.own.update(loss)
        self.logged.update(loss)
        self.log("val_logged", self.logged)
        self.log("val_loss", loss)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({"val_list": torch.stack(self.losses).mean(), "val_own": self.own.compute()})
        self.losses.clear()
        self.own.reset()


def test_figures_that_are_collected_over_the_epoch_are_of_one_version_alone(fit: Fit) -> None:
    callback = QATCallback(schedule=QATSchedule(lr=0.9), int8_every_n_epochs=1)
    trainer = fit(Collects(), callback, max_epochs=2)
    for version in ("fp32", "fake", "torch"):
        figures = results(callback)[version]
        for name in ("val_logged", "val_list", "val_own"):
            assert figures[name] == pytest.approx(figures["val_loss"], rel=1e-5), (version, name)
    assert results(callback)["fp32"]["val_loss"] != pytest.approx(results(callback)["fake"]["val_loss"], rel=0.01)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["val_list"] == pytest.approx(logged["val_loss"], rel=1e-5)


def test_the_float_row_is_the_module_as_qat_found_it(fit: Fit) -> None:
    """Also what lies outside of the target, which trains on."""

    class Headed(Tiny):
        def __init__(self) -> None:
            super().__init__(lr=0.5)
            self.backbone, self.head, self.model = self.model[:5], nn.Linear(64, 3), None

        def forward(self, x: Tensor) -> Any:
            return self.head(self.backbone(x))

    module, callback = Headed(), QATCallback(target="backbone", schedule=QATSchedule(lr=None))
    before = Headed()
    before.load_state_dict(module.state_dict())
    fit(module, callback, max_epochs=2)
    with torch.no_grad():
        losses = [F.cross_entropy(before.eval()(x), y).item() for x, y in val_loader()]
    assert results(callback)["fp32"]["val_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert results(callback)["fake"]["val_loss"] != pytest.approx(results(callback)["fp32"]["val_loss"], rel=1e-3)


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(36, 8), nn.Linear(8, 3)

    def encode(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(1)).relu()

    def forward(self, x: Tensor) -> Output:
        hidden = self.encode(x)
        return Output(self.last(hidden), hidden)


class Structured(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.model = Net()

    def forward(self, x: Tensor) -> Any:
        return self.model(x).logits


def test_int8_outputs_come_in_the_structure_of_the_target(fit: Fit) -> None:
    callback = qat()
    fit(Structured(), callback, max_epochs=1)
    assert {name for name, figures in results(callback).items() if "val_loss" in figures} == {"fp32", "fake", "torch"}


def test_parts_that_are_called_besides_are_the_float_ones_in_float(fit: Fit) -> None:
    class Besides(Structured):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.log("val_norm", self.model.encode(batch[0]).norm())

    module, callback, before = Besides(), qat(lr=0.5), Net()
    before.load_state_dict(module.model.state_dict())
    fit(module, callback, max_epochs=1)
    with torch.no_grad():
        norms = [float(before.encode(x).norm()) for x, _ in val_loader()]
    assert results(callback)["fp32"]["val_norm"] == pytest.approx(sum(norms) / len(norms))
    assert results(callback)["fake"]["val_norm"] != pytest.approx(sum(norms) / len(norms), rel=1e-4)


def test_figures_of_int8_every_few_epochs(fit: Fit) -> None:
    callback = QATCallback(schedule=QATSchedule(lr=0.5), int8_every_n_epochs=2)
    trainer = fit(Tiny(), callback, max_epochs=4)
    with (Path(trainer.log_dir or "") / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = [(int(row["epoch"]), float(row["qat/int8/val_loss"])) for row in rows if row.get("qat/int8/val_loss")]
    assert [epoch for epoch, _ in logged] == [1, 3, 3]
    assert logged[-1][1] == pytest.approx(results(callback)["torch"]["val_loss"])
    own = {int(row["epoch"]): float(row["val_loss"]) for row in rows if row.get("val_loss")}
    assert logged[0][1] == pytest.approx(own[1], rel=0.05)  # of the fake-quantized model at that time


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_keeps_the_figures_of_the_float_model(tmp_path: Path) -> None:
    first = qat(lr=0.5)
    keeper = ModelCheckpoint(tmp_path / "kept", save_last=True)
    make_trainer(tmp_path, first, keeper, max_epochs=1).fit(Tiny(), train_loader(), val_loader())
    second, keeper = qat(lr=0.5), ModelCheckpoint(tmp_path / "again", save_last=True)
    trainer = make_trainer(tmp_path, second, keeper, max_epochs=2)
    trainer.fit(Tiny(), train_loader(), val_loader(), ckpt_path=tmp_path / "kept" / "last.ckpt")
    assert results(second)["fp32"] == results(first)["fp32"]
    assert "val_loss" in results(second)["fp32"]


class Silent(Tiny):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return (*batch, torch.arange(len(batch[1])))


class Indexed(Silent):
    """Logs how often the class is a part of the batch, of which the second one is the labels."""

    part = 1

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[self.part]).float().mean())


@pytest.mark.parametrize("part", [1, 2])
def test_longer_batches_have_an_accuracy_if_the_module_finds_the_same(fit: Fit, part: int) -> None:
    module, callback = Indexed(), qat(lr=0.5)
    module.part = part
    trainer = fit(module, callback, max_epochs=1)
    found = results(callback)
    own = trainer.callback_metrics["val_acc"].item()
    assert found["fake"]["val_acc"] == pytest.approx(own)
    confirmed = {version: figures.get("accuracy") for version, figures in found.items() if version in ("fp32", "torch")}
    if part == 1:
        assert trainer.callback_metrics["qat/fake/accuracy"].item() == pytest.approx(own)
        assert confirmed == {version: pytest.approx(found[version]["val_acc"]) for version in confirmed}
    else:
        assert "qat/fake/accuracy" not in trainer.callback_metrics
        assert confirmed == {"fp32": None, "torch": None}


def test_a_validation_that_logs_nothing_is_told_what_to_log(fit: Fit) -> None:
    callback = qat()
    fit(Silent(), callback, max_epochs=1)
    assert callback.deployment is not None
    (note,) = [note for note in callback.deployment.notes if "logs nothing" in note]
    assert note.startswith("Silent.validation_step logs nothing")
    assert "self.log('val_" in note
    assert callback.deployment.rows[-1]["sqnr_db"] > 25


def test_a_figure_that_is_never_logged_is_refused_before_the_first_step(fit: Fit) -> None:
    module = Tiny()
    steps: list[int] = []
    module.training_step = lambda batch, batch_idx: steps.append(batch_idx)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"monitor='val_f1': the validation of Tiny logs no such.*It logs val_loss;"):
        fit(module, QATCallback(monitor="val_f1"), max_epochs=1, num_sanity_val_steps=1)
    assert steps == []


class QuietAtFirst(Tiny):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            super().validation_step(batch, batch_idx)
        else:
            self(batch[0])


def test_a_figure_need_not_be_logged_in_the_sanity_check(fit: Fit) -> None:
    callback = QATCallback(monitor="val_loss", mode="min")
    fit(QuietAtFirst(), callback, max_epochs=1)
    assert callback.deployment is not None
    with pytest.raises(ValueError, match=r"monitor='val_f1': the validation of QuietAtFirst logs no such figure"):
        fit(QuietAtFirst(), QATCallback(monitor="val_f1"), max_epochs=1)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_a_barebones_trainer_logs_no_figure_and_the_comparison_has_it(tmp_path: Path) -> None:
    callback = QATCallback(monitor="val_loss", mode="min")
    trainer = L.Trainer(
        barebones=True, accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, callbacks=[callback]
    )
    trainer.fit(Tiny(), train_loader(), val_loader())
    assert "val_loss" in results(callback)["torch"]


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"monitor": 3}, TypeError, r"monitor=3 \(int\) must be a name"),
        ({"monitor": "val_loss", "mode": "up"}, ValueError, "mode='up' must be 'max' if a higher val_loss"),
        ({"mode": "min"}, ValueError, "not which one: give monitor="),
    ],
)
def test_monitors_that_are_none(given: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        QATCallback(**given)


@pytest.mark.parametrize(("monitor", "fails"), [(None, False), ("val_loss", True)])
def test_the_gate_looks_at_the_figure_that_counts(fit: Fit, monitor: str | None, fails: bool) -> None:
    """int8 differs from the fake-quantized model in the loss by rounding, in the accuracy not at all."""
    callback = QATCallback(monitor=monitor, gate=Gate(max_metric_change=0.0), schedule=QATSchedule(lr=0.5))
    if fails:
        with pytest.raises(RuntimeError, match="val_loss is"):
            fit(Off(), callback, max_epochs=1)
    else:
        fit(Off(), callback, max_epochs=1)


class Off(Tiny):
    """Its loss tells the versions apart: of int8 no gradient can be taken."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            y = self(batch[0].clone())
        self.log("val_loss", F.cross_entropy(y, batch[1]) + float(y.requires_grad))


def test_layers_are_excluded_by_the_figure_that_counts(fit: Fit) -> None:
    callback = QATCallback(auto_exclude=True, monitor="val_loss", mode="min", schedule=QATSchedule(lr=0.5))
    fit(Tiny(), callback, max_epochs=1)
    assert callback.exclusions is not None
    assert "quantization takes val_loss from" in callback.exclusions.verdict


def test_which_way_it_is_better_has_to_be_known(fit: Fit) -> None:
    with pytest.raises(
        ValueError, match=r"which way val_loss is better: give QATCallback\(monitor='val_loss', mode='max'\)"
    ):
        fit(Tiny(), QATCallback(auto_exclude=True, monitor="val_loss"), max_epochs=1)
    with pytest.raises(ValueError, match=r"needs a figure to compare: .* Name a figure that validation_step logs"):
        fit(Silent(), QATCallback(auto_exclude=True), max_epochs=1)


def test_a_model_checkpoint_says_what_counts_and_which_way(tmp_path: Path) -> None:
    callback = QATCallback(auto_exclude=True, schedule=QATSchedule(lr=0.5))
    checkpoint = ModelCheckpoint(tmp_path / "kept", monitor="val_loss", mode="min")
    make_trainer(tmp_path, callback, checkpoint, max_epochs=1).fit(Tiny(), train_loader(), val_loader())
    assert callback.exclusions is not None
    assert "quantization takes val_loss from" in callback.exclusions.verdict


class SkipsInValidation(Tiny):
    """Gives only some batches to the target."""

    def __init__(self, skipped: tuple[int, ...]) -> None:
        super().__init__()
        self.skipped = skipped

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx in self.skipped:
            self.log("mean", batch[0].mean())
        else:
            super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("skipped", [0, 1])
def test_a_validation_step_may_skip_batches(fit: Fit, skipped: int) -> None:
    callback = QATCallback(int8_every_n_epochs=1)
    fit(SkipsInValidation((skipped,)), callback, loaders=(train_loader(), val_loader()), max_epochs=2)
    found = results(callback)
    assert found["torch"]["val_loss"] == pytest.approx(found["fake"]["val_loss"], abs=0.01)
    assert found["torch_vs_fake"]["sqnr_db"] > 30


def test_but_not_all(fit: Fit) -> None:
    with pytest.raises(ValueError, match="did not call the quantized target"):
        fit(SkipsInValidation((0, 1)), QATCallback(), loaders=(train_loader(), val_loader()))


@pytest.mark.parametrize("owner", ["loader", "sampler"])
@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
def test_versions_are_compared_on_the_same_samples_of_a_loader_that_shuffles(fit: Fit, owner: str) -> None:
    data, callback = make_data(64, seed=1), QATCallback(int8_every_n_epochs=1)
    generator = torch.Generator()
    if owner == "loader":
        shuffled = DataLoader(data, batch_size=6, shuffle=True, generator=generator)
    else:
        shuffled = DataLoader(data, batch_size=6, sampler=RandomSampler(data, generator=generator))
    fit(Tiny(), callback, loaders=(train_loader(), shuffled), max_epochs=1, limit_val_batches=1)
    found = results(callback)
    assert found["torch_vs_fake"]["sqnr_db"] > 40
    assert found["torch"]["val_loss"] == pytest.approx(found["fake"]["val_loss"], abs=0.005)
