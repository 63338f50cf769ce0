"""Modules, and Trainers that say nothing, for the subcommands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lq.cli.trainer import QATTrainer
from tests.tiny import Late, Tiny, make_data, make_net, train_loader, val_loader


class WithData(Tiny):
    """Brings its own validation data."""

    def val_dataloader(self) -> Any:
        return val_loader()


class WithAllData(WithData):
    def train_dataloader(self) -> Any:
        return train_loader()


class LateWithAllData(Late):
    train_dataloader, val_dataloader = WithAllData.train_dataloader, WithAllData.val_dataloader


class OwnLayout(L.LightningModule):
    """Without forward; its batches are dicts with more than the model takes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_net()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.model(batch["image"]), batch["label"]))

    def train_dataloader(self) -> Any:
        x, y = make_data().tensors
        return DataLoader(
            [{"image": a, "label": b, "index": i} for i, (a, b) in enumerate(zip(x, y, strict=True))], batch_size=8
        )  # type: ignore[arg-type]

    val_dataloader = train_dataloader


def quiet_trainer(tmp_path: Path, *callbacks: Any) -> QATTrainer:
    return QATTrainer(
        accelerator="cpu", callbacks=list(callbacks), logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
