"""A probe for each private name of Lightning."""

import copy
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DistributedSampler, RandomSampler
from torchmetrics import Accuracy

from lq.compat import lightning_private as private
from tests.tiny import WEIGHTS_ONLY, Tiny, keeper, make_trainer, train_loader, val_loader


def quiet_trainer(folder: Path, *callbacks: Callback) -> Trainer:
    return Trainer(
        default_root_dir=folder, callbacks=list(callbacks), logger=False, enable_checkpointing=False, max_steps=0,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip


def test_a_module_is_copied_without_its_trainer(tmp_path: Path) -> None:
    module = LightningModule()
    module.trainer = trainer = quiet_trainer(tmp_path)
    with private.without_trainer(module):
        assert vars(copy.deepcopy(module))[private.TRAINER] is None
    assert module.trainer is trainer


def test_a_copy_finds_its_own_metrics() -> None:
    class WithMetric(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.accuracy = Accuracy("multiclass", num_classes=2)

    module = WithMetric()
    module._metric_attributes = {id(module.accuracy): "accuracy"}  # as its first log() leaves it
    copied = copy.deepcopy(module)
    private.forget_metrics(copied)
    assert copied._metric_attributes is None
    assert module._metric_attributes is not None


def test_the_sampler_of_the_user_is_inside_of_lightnings() -> None:
    users = RandomSampler([1, 2, 3])
    assert private.users_sampler(DistributedSamplerWrapper(users, num_replicas=2, rank=0)) is users
    assert isinstance(DistributedSamplerWrapper(users, num_replicas=2, rank=0), DistributedSampler)


def test_the_arguments_of_a_run_are_known_in_setup(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Looks(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            seen.append(private.settings_of_run(trainer))

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

        def training_step(self, batch: Any, batch_idx: int) -> None: ...

    trainer = quiet_trainer(tmp_path, Looks())
    module = Module()
    trainer.fit(module, [1])
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    quiet_trainer(tmp_path, Looks()).fit(module, [1], ckpt_path=tmp_path / "x.ckpt", **WEIGHTS_ONLY)
    assert not seen[0]["ckpt_path"]
    assert Path(seen[1]["ckpt_path"]) == tmp_path / "x.ckpt"
    assert seen[1].get("weights_only") is WEIGHTS_ONLY.get("weights_only")
    assert private.settings_of_run(trainer) is None


def test_a_module_holds_the_mesh_of_its_strategy() -> None:
    module, mesh = LightningModule(), object()
    assert module._device_mesh is None
    module._device_mesh = mesh  # type: ignore[assignment]
    with private.without_device_mesh(module):
        assert module._device_mesh is None
    assert module._device_mesh is mesh


def test_it_is_known_how_validation_loaders_are_combined(tmp_path: Path) -> None:
    class Module(LightningModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    trainer = quiet_trainer(tmp_path)
    assert private.validation_loaders_of(trainer) is None
    trainer.validate(Module(), [[1, 2], [3]], verbose=False)
    assert private.validation_loaders_of(trainer) == [[1, 2], [3]]
    trainer = quiet_trainer(tmp_path)
    trainer.validate(Module(), CombinedLoader({"a": [1, 2], "b": [3]}, "max_size"), verbose=False)
    again = private.combined_like(private.validation_loaders_of(trainer), {"a": [4, 5], "b": [6]})
    assert [batch for batch, _, _ in again] == [{"a": 4, "b": 6}, {"a": 5, "b": None}]


def test_figures_of_several_loaders_are_known_in_the_sanity_check(tmp_path: Path) -> None:
    seen: list[tuple[bool, list[str]]] = []

    class Looks(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.append((trainer.sanity_checking, private.logged_by_loaders(trainer)))

    class Logs(Tiny):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("loss", 1.0)

    trainer = Trainer(
        default_root_dir=tmp_path, callbacks=[Looks()], logger=False, enable_checkpointing=False, max_epochs=1,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Logs(), train_loader(), [val_loader(), val_loader()])
    assert seen[0] == (True, ["loss/dataloader_idx_0", "loss/dataloader_idx_1"])


def test_a_checkpoint_knows_its_epochs(tmp_path: Path) -> None:
    seen = []

    class Looks(Callback):
        def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
            seen.append((checkpoint["epoch"], private.epochs_behind(checkpoint)))

    trainer = make_trainer(tmp_path, Looks(), keeper(tmp_path / "kept"), max_epochs=2)
    trainer.fit(Tiny(), train_loader(), val_loader())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert sorted(set(seen)) == [(0, 1), (1, 2), (2, 2)]
