"""Fits a tiny module in some processes and writes what each of them ended with; started by test_ddp.py.

``python ddp_run.py FOLDER PROCESSES STRATEGY LEARNING_RATE [quick]``, quick without the gate's process and a stopwatch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics.classification import MulticlassAccuracy

from lq.backends.prepare import state_of
from lq.callback import QATCallback
from lq.callback.distillation import Distillation
from lq.config.qconfig import QConfig
from lq.config.schedule import QATSchedule
from lq.config.specs import ActivationSpec
from tests.tiny import Tiny, let_forks_set_threads, make_data, quicken_deployment


class Module(Tiny):
    """No BatchNorm, whose statistics would be those of one process; with a metric that all processes gather."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__(lr=lr)
        self.model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        self.accuracy = MulticlassAccuracy(3)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits: Tensor = self(batch[0])
        self.accuracy(logits, batch[1])
        self.log("val_accuracy", self.accuracy)
        self.log("val_loss", F.cross_entropy(logits, batch[1]), sync_dist=True)


class _Data(L.LightningDataModule):
    """Each process takes its share in order: Lightning's own sampler would shuffle."""

    def __init__(self, processes: int) -> None:
        super().__init__()
        self.processes = processes

    def prepare_data(self) -> None:
        """Here Lightning lets the processes meet."""

    def train_dataloader(self) -> Any:
        return self._loader(make_data(24), 12 // self.processes)

    def val_dataloader(self) -> Any:
        return self._loader(make_data(15, seed=1), 5)

    def _loader(self, data: Any, batch_size: int) -> Any:
        sampler: Any = DistributedSampler(data, shuffle=False) if self.processes > 1 else None
        return DataLoader(data, batch_size=batch_size, sampler=sampler)


class _Record(L.Callback):
    """Writes what a process ends with, in that process."""

    def __init__(self, folder: Path, qat: QATCallback) -> None:
        self.folder, self.qat = folder, qat

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        state, deployment = state_of(pl_module.model), self.qat.deployment
        torch.save(
            {
                "min": state.min_val,
                "max": state.max_val,
                "weight": pl_module.model.get_submodule("3").weight.detach(),
                "deployed": deployment is not None,
                "results": deployment.results if deployment else {},
                "logged": {k: float(v) for k, v in trainer.callback_metrics.items()},
            },
            self.folder / f"rank{trainer.global_rank}.pt",
        )


def main(folder: Path, processes: int, strategy: str = "auto", lr: float = 0.1) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    let_forks_set_threads(strategy)
    exact = lr == 0.0
    # The first step of QAT rounds by each process's own batch, and a moving average would never quite forget that.
    spec = ActivationSpec(averaging_constant=1.0 if exact else 0.01)
    callback = QATCallback(
        qconfig=QConfig(activation=spec),
        schedule=QATSchedule(start=1, lr=0.5),
        int8_every_n_epochs=1,
        distill=Distillation(),
        export_dir=str(folder / "int8"),
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=strategy,
        # What is compared to the bit must not hang on the order of sums.
        precision="64-true" if exact else "32-true",
        max_epochs=4,
        callbacks=[callback, _Record(folder, callback)],
        logger=L.pytorch.loggers.CSVLogger(folder, name="csv"),
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    module = Module(lr)
    trainer.fit(module, _Data(processes))
    if trainer.is_global_zero:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        torch.save({"state_dict": module.state_dict(), "metrics": metrics}, folder / "main.pt")


if __name__ in ("__main__", "__mp_main__") and sys.argv[5:] == ["quick"]:  # the latter in spawned processes
    quicken_deployment(pytest.MonkeyPatch())

if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
