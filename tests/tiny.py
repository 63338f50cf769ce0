"""Tiny modules, data and trainers for real runs of a second or less."""

from __future__ import annotations

import os
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loops import training_epoch_loop
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lq.callback import QATCallback
from lq.config.schedule import QATSchedule
from lq.export.artifact.int8_model import load
from lq.export.parity.fresh_process import FreshProcess
from lq.export.parity.worker import Worker
from lq.metrics.detections import Comparable, comparable
from lq.timing.latency import Latency
from lq.timing.stopwatch import Stopwatch

# Lightning reads checkpoints as plain data on demand since 2.6.
WEIGHTS_ONLY: dict[str, Any] = {"weights_only": True} if "weights_only" in signature(L.Trainer.fit).parameters else {}

# Lightning 2.4 miscounts the batches of an epoch in whose middle it resumes.
RESUMES_MID_EPOCH = hasattr(training_epoch_loop, "RestartStage")


def make_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


class Tiny(L.LightningModule):
    """A classifier of 6x6 images in three classes."""

    def __init__(self, scheduler: str | None = None, lr: float = 0.1) -> None:
        super().__init__()
        self.model: Any = make_net()
        self.scheduler, self.lr = scheduler, lr

    def forward(self, x: Tensor) -> Any:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits: Tensor = self(batch[0])
        return logits

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        if self.scheduler == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
        if self.scheduler is not None:
            decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": self.scheduler}}
        return optimizer


def make_data(count: int = 24, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    x = torch.randn(count, 1, 6, 6, generator=generator) + labels.view(-1, 1, 1, 1).float()
    return TensorDataset(x, labels)


def train_loader(count: int = 24, batch_size: int = 8) -> DataLoader[Any]:
    return DataLoader(make_data(count), batch_size=batch_size)


def val_loader(count: int = 12, batch_size: int = 6) -> DataLoader[Any]:
    return DataLoader(make_data(count, seed=1), batch_size=batch_size)


class Late(Tiny):
    """Builds its network when Lightning asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = None

    def configure_model(self) -> None:
        if self.model is None:
            self.model = make_net()


class Gain(nn.Module):
    """A factor, of which the first version held the logarithm."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        key = f"{prefix}factor"
        if local_metadata.get("version", 1) < 2 and key in state_dict:
            state_dict[key] = state_dict[key].exp()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class Versioned(Tiny):
    """Holds a module whose state dicts have versions."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(*make_net(), Gain())


class NoNoise(Tiny):
    """Without dropout: its random numbers are not part of a checkpoint."""

    def __init__(self, scheduler: str | None = "step") -> None:
        super().__init__(scheduler)
        self.model = nn.Sequential(*(m for m in make_net() if not isinstance(m, nn.Dropout)))


class Resumable(DataLoader[Any]):
    """Goes on in the middle of an epoch."""

    skip = done = 0

    def __iter__(self) -> Any:
        skip, self.skip = self.skip, 0
        for index, batch in enumerate(super().__iter__()):
            if index >= skip:
                self.done = index + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skip = state["done"] % len(self)


def resumable(count: int = 24) -> Resumable:
    return Resumable(make_data(count), batch_size=8)


def make_trainer(folder: Path, *callbacks: Any, **kwargs: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 3,
        "logger": CSVLogger(folder, name="csv"),
        "default_root_dir": folder,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "log_every_n_steps": 1,
    }
    return L.Trainer(callbacks=list(callbacks), **(settings | kwargs))


def qat(**schedule: Any) -> QATCallback:
    """A QATCallback with a schedule."""
    return QATCallback(schedule=QATSchedule(**schedule))


def keeper(folder: Path, **kwargs: Any) -> ModelCheckpoint:
    """A ModelCheckpoint that keeps the last state."""
    return ModelCheckpoint(folder, save_last=True, **kwargs)


def let_forks_set_threads(strategy: str) -> None:
    """Lightning sets the number of threads in each process that it forks, but not where OMP_NUM_THREADS is set.

    Then the first to do it are two threads of autograd at once, which makes torch 2.14 abort now and then: "Invalid
    thread pool!" from ParallelOpenMP.cpp.
    """
    if strategy == "ddp_notebook":
        os.environ.pop("OMP_NUM_THREADS", None)


def quicken_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate in this process and no stopwatch: tests/export has test_worker.py and test_stopwatch.py for those."""

    def run_here(worker: Worker, directory: Path, kind: str, calls: Sequence[Any]) -> list[Comparable]:
        model = load(directory, kind)
        return [comparable(model(*args, **kwargs)) for args, kwargs in calls]

    def no_latencies(
        stopwatch: Stopwatch, directory: Path, kinds: Any, float_model: Any, sample: Any, threads: int = 1
    ) -> dict[str, Latency]:
        names = [*kinds, *([] if float_model is None else ["fp32 frozen"])]
        return {name: Latency(1.0, 1.0, 0.0, 1, 1, 1) for name in names}

    monkeypatch.setattr(FreshProcess, "__enter__", lambda process: process)
    monkeypatch.setattr(Worker, "run", run_here)
    monkeypatch.setattr(Stopwatch, "latencies", no_latencies)
