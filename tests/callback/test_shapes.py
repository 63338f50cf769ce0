"""Modules, batches, loaders and trainers of all shapes reach an artifact."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

import lq
from lq.backends.prepare import is_prepared, prepare, set_phase, state_of
from lq.callback import QATCallback
from lq.export.artifact.int8_model import load
from tests.callback.conftest import Fit
from tests.tiny import (
    WEIGHTS_ONLY,
    Late,
    Tiny,
    keeper,
    make_data,
    make_net,
    make_trainer,
    qat,
    train_loader,
    val_loader,
)

# A checkpoint is taken up by a trainer that keeps its own elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


class TwoInputs(nn.Module):
    """Two inputs, a flag that stays at its default, and a structured output."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.image, self.extra, self.head = nn.Linear(36, 8), nn.Linear(3, 8), nn.Linear(8, 3)
        self.kind = kind

    def forward(self, x: Tensor, extra: Tensor | None = None, scale: bool = False) -> Any:
        hidden = self.image(x.flatten(1))
        if extra is not None:
            hidden = hidden + self.extra(extra)
        logits = self.head(torch.relu(hidden))
        if scale:
            logits = logits * 2
        return {"logits": logits, "hidden": hidden} if self.kind == "dict" else (logits, hidden)


class MultiInput(Tiny):
    """Calls its network by position and keyword with dict batches."""

    def __init__(self, kind: str, keywords: bool) -> None:
        super().__init__()
        self.model, self.keywords = TwoInputs(kind), keywords
        self.example_input_array = (torch.zeros(2, 1, 6, 6), torch.zeros(2, 3))

    def forward(self, x: Tensor, extra: Tensor) -> Any:
        if self.keywords:
            return self.model(x, extra=extra, scale=False)
        return self.model(x, extra)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self(batch["x"], batch["extra"])
        return F.cross_entropy(out["logits"] if isinstance(out, dict) else out[0], batch["labels"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch["x"], batch["extra"])


def dict_loader() -> DataLoader[Any]:
    return DataLoader([{"x": x, "extra": torch.ones(3), "labels": y} for x, y in make_data(12)], batch_size=6)


@pytest.mark.parametrize("kind", ["dict", "tuple"])
@pytest.mark.parametrize("keywords", [True, False])
def test_several_inputs_keywords_dict_batches_and_structured_outputs(fit: Fit, kind: str, keywords: bool) -> None:
    callback = QATCallback()
    module = MultiInput(kind, keywords)
    fit(module, callback, max_epochs=2, loaders=(dict_loader(), dict_loader()))
    deployment = callback.deployment
    assert deployment is not None
    assert deployment.directory is not None
    assert deployment.results["torch_vs_fake"]["sqnr_db"] > 30
    x, extra = torch.randn(5, 1, 6, 6), torch.ones(5, 3)
    expected = deployment.models["torch"](x, extra)
    got = load(deployment.directory)(x, extra=extra) if keywords else load(deployment.directory)(x, extra)
    assert type(got) is type(expected)
    key: Any = "logits" if kind == "dict" else 0
    assert torch.equal(got[key], expected[key])
    assert module.model.training


class Direct(Tiny):
    """Layers, and metrics, directly on the LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        del self.model
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 3)
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(3)
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(3))
        self.more = torchmetrics.MetricCollection({"f1": torchmetrics.classification.MulticlassF1Score(3)})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.norm(self.conv(x))).flatten(1))
        return y

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.loss(self(batch[0]), batch[1])
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.accuracy(logits, batch[1])
        self.more(logits, batch[1])
        self.log("val_accuracy", self.accuracy)
        self.log_dict(self.more)


def test_layers_directly_on_the_module(fit: Fit, tmp_path: Path) -> None:
    module, callback = Direct(), qat(start=1)
    trainer = fit(module, callback, keeper(tmp_path / "kept"))
    assert isinstance(module, Direct)
    assert type(module).__name__ == "Direct"
    assert callback.deployment is not None
    assert callback.deployment.directory is not None
    x = torch.randn(4, 1, 6, 6)
    assert torch.equal(load(callback.deployment.directory)(x), callback.deployment.models["torch"](x))
    assert {"val_accuracy", "f1", "qat/fake/accuracy", "qat/fp32/accuracy"} <= trainer.callback_metrics.keys()
    fresh = Direct()
    make_trainer(tmp_path, qat(start=1), keeper(tmp_path / "unused")).validate(
        fresh, val_loader(), ckpt_path=tmp_path / "kept" / "last.ckpt", verbose=False, **WEIGHTS_ONLY
    )
    with torch.no_grad():
        assert torch.equal(fresh.eval()(x), module.eval()(x))


def test_target_by_name_leaves_the_rest_alone(fit: Fit) -> None:
    class Nested(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.ModuleDict({"body": make_net(), "head": nn.Linear(3, 3)})

        def forward(self, x: Tensor) -> Any:
            return self.model["head"](self.model["body"](x))

    module = Nested()
    fit(module, QATCallback(target="model.body"), max_epochs=1)
    assert is_prepared(module.model["body"])
    assert type(module.model["head"]) is nn.Linear


def test_configure_model(fit: Fit, tmp_path: Path) -> None:
    callback = qat()
    fit(Late(), callback, keeper(tmp_path / "kept"), max_epochs=1)
    assert callback.deployment is not None
    fresh = Late()
    make_trainer(tmp_path, qat(), keeper(tmp_path / "unused")).test(
        fresh, val_loader(), ckpt_path=tmp_path / "kept" / "last.ckpt", verbose=False
    )
    assert is_prepared(fresh.model)


def test_configure_model_that_builds_twice_is_refused(fit: Fit) -> None:
    class Again(Tiny):
        def configure_model(self) -> None:
            self.model = make_net()

    with pytest.raises(ValueError, match=r"`if self.model is not None: return`"):
        fit(Again(), qat())


def test_several_validation_loaders(fit: Fit) -> None:
    class Two(Tiny):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)

    callback = qat()
    trainer = fit(Two(), callback, max_epochs=1, loaders=(train_loader(), [val_loader(), val_loader(6)]))
    assert "qat/fake/accuracy" in trainer.callback_metrics
    assert callback.deployment is not None
    seen = callback.deployment.results
    assert {"fp32", "fake", "torch"} <= seen.keys()
    own = {"val_loss/dataloader_idx_0", "val_loss/dataloader_idx_1"}
    assert all(own <= seen[version].keys() for version in ("fp32", "fake", "torch"))


def test_validation_loaders_that_are_combined_stay_it(fit: Fit) -> None:
    class Pairs(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch["a"]
            self.log("val_loss", F.cross_entropy(self.model(x), y), batch_size=len(x))

    callback = qat()
    pairs = CombinedLoader({"a": val_loader(), "b": val_loader(6)}, "max_size")
    fit(Pairs(), callback, max_epochs=1, loaders=(train_loader(), pairs))
    assert callback.deployment is not None
    seen = callback.deployment.results
    assert all("val_loss" in seen[version] for version in ("fp32", "fake", "torch"))


@pytest.mark.parametrize("how", ["no loader", "no step", "limit"])
def test_without_validation_it_still_converts(fit: Fit, how: str) -> None:
    class NoStep(Tiny):
        validation_step = L.LightningModule.validation_step  # type: ignore[assignment]

    callback = qat()
    loaders = (train_loader(),) if how != "limit" else (train_loader(), val_loader())
    settings = {"limit_val_batches": 0} if how == "limit" else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*validation_step.*|.*val_dataloader.*")  # Lightning's own note
        fit(NoStep() if how == "no step" else Tiny(), callback, max_epochs=1, loaders=loaders, **settings)
    assert callback.deployment is not None
    assert callback.deployment.directory is not None
    load(callback.deployment.directory)(torch.randn(3, 1, 6, 6))
    assert callback.deployment.rows[-1]["agreement"] == 1.0
    assert callback.deployment.rows[-1]["sqnr_db"] > 30
    assert any("training batch" in note for note in callback.deployment.notes)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(make_data(24))


def test_iterable_data_without_length(fit: Fit) -> None:
    callback = qat(start=1, freeze_bn=2, observer_off=2)
    fit(Tiny(), callback, max_epochs=3, loaders=(DataLoader(Stream(), batch_size=8), val_loader()))
    assert callback.deployment is not None


def test_iterable_data_with_max_steps(fit: Fit) -> None:
    callback, module = qat(start=0.25, lr=0.5), Tiny()
    fit(module, callback, max_epochs=-1, max_steps=8, loaders=(DataLoader(Stream(), batch_size=8), val_loader()))
    assert callback.deployment is not None
    assert state_of(module.model).freeze_bn


def test_max_steps_ends_in_the_middle_of_an_epoch(fit: Fit) -> None:
    callback, module = qat(start="2 steps", freeze_bn="3 steps", observer_off="3 steps"), Tiny()
    fit(module, callback, max_steps=4)
    assert callback.deployment is not None
    assert state_of(module.model).freeze_bn


def test_limits_accumulation_and_clipping(fit: Fit) -> None:
    callback = qat()
    settings: dict[str, Any] = {"limit_train_batches": 2, "limit_val_batches": 1, "accumulate_grad_batches": 2}
    fit(Tiny(), callback, max_epochs=2, gradient_clip_val=0.5, val_check_interval=1, **settings)
    assert callback.deployment is not None


def test_fast_dev_run_tries_everything_and_writes_nothing(fit: Fit, tmp_path: Path) -> None:
    module, callback = Tiny(), qat(start=2)
    fit(module, callback, fast_dev_run=True)
    assert callback.deployment is not None
    assert callback.deployment.results["torch_vs_fake"]["agreement"] >= 0
    assert callback.deployment.directory is None
    assert not list(tmp_path.rglob("int8"))


def test_manual_optimization_with_two_optimizers(fit: Fit) -> None:
    class Manual(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            first, second = self.optimizers()  # type: ignore[misc,attr-defined]
            self.manual_backward(loss)
            for optimizer in (first, second):
                optimizer.step()
                optimizer.zero_grad()
            self.seen = first.param_groups[0]["lr"], second.param_groups[0]["lr"]
            return loss

        def configure_optimizers(self) -> Any:
            parameters = list(self.parameters())
            return [torch.optim.SGD(parameters[:2], lr=0.1), torch.optim.SGD(parameters[2:], lr=0.2)]

    module = Manual()
    callback = qat(lr=0.5, lr_final=1.0)
    fit(module, callback, max_epochs=1)
    assert callback.deployment is not None
    assert module.seen == pytest.approx((0.05, 0.1))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(fit: Fit, precision: str) -> None:
    callback, module = qat(start=1), Tiny()
    fit(module, callback, max_epochs=2, precision=precision)
    assert callback.deployment is not None
    assert state_of(module.model).min_val.dtype == torch.float32
    assert callback.deployment.results["fp32"].keys() == {"val_loss", "accuracy"}
    assert callback.deployment.results["torch_vs_fake"]["sqnr_db"] > 30


def test_two_fits_in_a_row(fit: Fit, tmp_path: Path) -> None:
    module, callback = Tiny(), qat(start=1)
    fit(module, callback)
    first = callback.deployment
    fit(module, callback, default_root_dir=tmp_path / "again")
    assert callback.deployment is not first


def test_one_callback_for_two_modules(fit: Fit) -> None:
    class Other(Tiny):
        def __init__(self) -> None:
            super().__init__()
            del self.model
            self.net = make_net()

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

    callback, other = qat(), Other()
    fit(Tiny(), callback, max_epochs=1)
    fit(other, callback, max_epochs=1)
    assert is_prepared(other.net)


def test_another_qconfig_on_a_prepared_module_is_refused(fit: Fit) -> None:
    module = Tiny()
    fit(module, qat(), max_epochs=1)
    with pytest.raises(ValueError, match=r"prepared for QAT before.*start from a new module"):
        fit(module, QATCallback(qconfig="x86_vnni"), max_epochs=1)


def test_public_name() -> None:
    assert lq.QATCallback is QATCallback


def test_deterministic_algorithms(fit: Fit) -> None:
    callback = QATCallback(int8_every_n_epochs=1)
    try:
        fit(Tiny(), callback, max_epochs=1, deterministic=True)
        assert callback.deployment is not None
        assert callback.deployment.directory is not None
        load(callback.deployment.directory)(torch.randn(2, 1, 6, 6))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


class Gate(nn.Module):
    """Chooses a layer by the values that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.bright, self.dark = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.mean() > 0):
            return self.bright(x)
        return self.dark(x)


def test_a_branch_on_values_trains_but_has_no_graph_to_export(fit: Fit) -> None:
    module = Tiny()
    module.model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), Gate(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"(?s)has no graph that could be exported: .*test_shapes\.py.*x\.mean"):
        fit(module, qat(start=1))
    prepared = prepare(module.model)
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    taken: set[bool] = set()
    prepared.get_submodule("2").register_forward_pre_hook(lambda _, args: taken.add(bool(args[0].mean() > 0)))
    for x in torch.randn(16, 2, 1, 6, 6):
        prepared.train()(x).sum().backward()
    assert taken == {True, False}, "one branch only"


class ChoosesBoxes(nn.Module):
    """As detectors do: a plain backbone, then a choice by values."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU()), Gate()

    def forward(self, x: Tensor) -> Tensor:
        chosen: Tensor = self.head(self.backbone(x))
        return chosen[:, :3]


def test_the_part_that_is_recommended_can_be_named(fit: Fit) -> None:
    module = Tiny()
    module.model = ChoosesBoxes()
    with pytest.raises(ValueError, match=r"QATCallback\(target='model\.backbone'\)"):
        fit(module, qat())
    callback = QATCallback(target="model.backbone")
    module = Tiny()
    module.model = ChoosesBoxes()
    fit(module, callback, max_epochs=1)
    assert callback.deployment is not None
    assert callback.deployment.directory is not None


class KeepsItsLoss(Tiny):
    """As many do to look at it later: a tensor with its graph, which cannot be copied."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.last = super().training_step(batch, batch_idx)
        return self.last


def test_a_module_may_keep_what_cannot_be_copied(fit: Fit) -> None:
    callback = qat()
    fit(KeepsItsLoss(), callback, max_epochs=1)
    assert callback.deployment is not None
    assert callback.deployment.results["torch"].keys() == {"val_loss", "accuracy"}
