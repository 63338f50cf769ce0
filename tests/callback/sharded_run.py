"""Fits a tiny module whose weights are split between two processes, resumes it, and writes what came out.

``python sharded_run.py FOLDER``; started by test_sharded.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lq import (
    ActivationSpec,
    QATCallback,
    QATSchedule,
    QConfig,
    WeightSpec,
    convert,
    load_checkpoint,
    prepare,
    set_phase,
    unsharded,
)
from lq.backends.prepare import state_of
from tests.tiny import WEIGHTS_ONLY, make_data, quicken_deployment

LEARNED = QConfig(
    weight=WeightSpec(-63, 63, learned_scale=True), activation=ActivationSpec(learned_scale=True), keep="nothing"
)


class Module(L.LightningModule):
    """The layers are made in ``__init__``, and ``configure_model`` splits them, as Lightning's documentation has it."""

    def __init__(self, each_layer: bool = True) -> None:
        super().__init__()
        self.each_layer = each_layer
        self.model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3)
        )

    def configure_model(self) -> None:
        mesh: Any = self.device_mesh
        for part in (self.model[0], self.model[4]) if self.each_layer else ():
            fully_shard(part, mesh=mesh["data_parallel"])
        fully_shard(self.model, mesh=mesh["data_parallel"])

    def forward(self, x: Tensor) -> Any:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def _fit(folder: Path, sharded: bool, ckpt_path: Path | None = None) -> dict[str, Any]:
    torch.manual_seed(0)
    module = Module(each_layer=sharded)  # as a whole in the other run, so that all weights are whole for a while
    callback = QATCallback(
        qconfig=LEARNED,
        schedule=QATSchedule(start=1, freeze_bn=3, observer_off=3, lr=0.5),
        distill={},  # type: ignore[arg-type]
        export_dir=str(folder / "int8"),
    )
    checkpoints = ModelCheckpoint(folder / "checkpoints", "{epoch}", monitor="val_loss", save_top_k=-1)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(2, 1, save_distributed_checkpoint=sharded),
        max_epochs=4,
        callbacks=[callback, checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    train, val = (DataLoader(make_data(24, seed=seed), 6) for seed in (0, 1))
    # Lightning reads checkpoints as plain data on demand since 2.6; before, it trusts them.
    trust: dict[str, Any] = {"weights_only": False} if WEIGHTS_ONLY else {}
    trainer.fit(module, train, val, ckpt_path=None if ckpt_path is None else str(ckpt_path), **trust)
    whole = unsharded(module)
    module.model.reshard()
    weight: Any = module.model[4].weight
    state, deployment = state_of(module.model), callback.deployment
    return {
        "local": tuple(weight.to_local().shape),
        "state": {key: value for key, value in whole.state_dict().items() if isinstance(value, Tensor)},
        "ranges": (state.min_val.clone(), state.max_val.clone()),
        "results": {} if deployment is None else deployment.results,
        "passed": deployment is not None and not deployment.failures,
    }


def train_plainly(rank: int, processes: int, split: bool) -> nn.Module:
    """Three steps without a Trainer; each process takes its share of the batches."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    data = make_data(24)
    prepared = prepare(net, LEARNED, (data[0][0].unsqueeze(0),))
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    if split:
        for part in (prepared[0], prepared):
            fully_shard(part)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    state_of(prepared).waits = True
    for step in range(3):
        share = range(8 * step + rank, 8 * step + 8, processes)
        x, y = (torch.stack([data[i][part] for i in share]) for part in (0, 1))
        F.cross_entropy(prepared(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        state_of(prepared).end_of_step()
    return prepared.eval()


def _plainly(rank: int) -> dict[str, Any]:
    prepared = train_plainly(rank, 2, split=True)
    try:
        convert(prepared)
    except ValueError as error:
        refused = str(error)
    whole = unsharded(prepared)
    return {"refused": refused, "state": whole.state_dict(), "output": convert(whole)(make_data(24)[:4][0])}


def main(folder: Path) -> None:
    """Fit with both kinds of checkpoints, resume from the middle, load a checkpoint, and train without a Trainer."""
    torch.set_num_threads(1)
    quicken_deployment(pytest.MonkeyPatch())
    found: dict[str, Any] = {}
    for kind in ("sharded", "whole"):
        run = found[kind] = _fit(folder / kind, kind == "sharded")
        checkpoints = folder / kind / "checkpoints"
        run["resumed"] = _fit(folder / kind, kind == "sharded", checkpoints / "epoch=2.ckpt")["state"]
        run["loaded"] = load_checkpoint(checkpoints / "epoch=3.ckpt", Module().model, weights_only=False).state_dict()
    found["plainly"] = _plainly(torch.distributed.get_rank())
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    main(Path(sys.argv[1]))
