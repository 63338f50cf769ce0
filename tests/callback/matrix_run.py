"""Fits with everything at once: how processes start x precision x EMA x accumulation x resume.

    python -m tests.callback.matrix_run FOLDER STRATEGY PROCESSES [CELL ...]

runs the cells (all, or those named) and writes what became of each into FOLDER/cells.json. Every cell ends with an
artifact that passed the gate and, with several processes, with the same weights and ranges in all of them; a run that
was broken off and resumed ends with the weights, ranges and optimizer of the one that was not, to the bit.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils import _pytree as pytree

from lq.callback import QATCallback
from lq.config.schedule import QATSchedule
from tests.tiny import NoNoise, keeper, let_forks_set_threads, make_trainer, quicken_deployment, resumable, val_loader

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
EPOCHS, BROKEN_OFF_IN = 4, 2
HAS_EMA = hasattr(callbacks, "EMAWeightAveraging")  # since Lightning 2.6


@dataclass(frozen=True)
class Cell:
    """One combination."""

    precision: str
    ema: bool
    accumulate: int
    resume: bool

    def __str__(self) -> str:
        return f"{self.precision},ema={self.ema:d},accumulate={self.accumulate},resume={self.resume:d}"


CELLS = [
    Cell(precision, ema, accumulate, resume)
    for precision, ema, accumulate, resume in itertools.product(PRECISIONS, (False, True), (1, 2), (False, True))
    if HAS_EMA or not ema
]


class BrokenOffError(Exception):
    """Stands for whatever ends a run."""


class BreakOff(L.Callback):
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == BROKEN_OFF_IN:
            raise BrokenOffError


class Record(L.Callback):
    """Writes what each process ends with, in that process."""

    def __init__(self, folder: Path, qat: QATCallback) -> None:
        self.folder, self.qat = folder, qat

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        deployment = self.qat.deployment
        end = {
            "module": pl_module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "passed": None if deployment is None else deployment.parity["torch"].passed,
        }
        torch.save(end, self.folder / f"rank{trainer.global_rank}.pt")
        trainer.strategy.barrier()


def fit(cell: Cell, strategy: str, processes: int, folder: Path, *, break_off: bool, ckpt_path: Path | None) -> None:
    """One fit."""
    torch.manual_seed(1)
    schedule = QATSchedule(start=1, observer_off=2, freeze_bn=3, lr=0.5)
    qat = QATCallback(schedule=schedule, export_dir=str(folder / "int8"))
    others: list[Any] = [callbacks.EMAWeightAveraging(decay=0.9)] if cell.ema else []
    others += [
        keeper(folder / ("broken_off" if break_off else "kept")),
        *([BreakOff()] if break_off else []),
        Record(folder, qat),
    ]
    trainer = make_trainer(
        folder,
        qat,
        *others,
        Record(folder, qat),
        strategy=strategy,
        devices=processes,
        precision=cell.precision,
        accumulate_grad_batches=cell.accumulate,
        max_epochs=EPOCHS,
        logger=False,
    )
    trainer.fit(NoNoise(), resumable(24), val_loader(), ckpt_path=ckpt_path)


def run(cell: Cell, strategy: str, processes: int, folder: Path) -> None:
    """What a cell demands.

    Raises:
        AssertionError: if it does not hold.
    """
    whole, broken = folder / str(cell).replace("resume=1", "resume=0"), folder / str(cell)
    whole.mkdir(parents=True, exist_ok=True)
    if not (whole / "rank0.pt").exists():
        fit(cell, strategy, processes, whole, break_off=False, ckpt_path=None)
    ends = _ends(whole, processes)
    assert ends[0]["passed"], "the artifact did not pass the gate"
    for other in ends[1:]:
        assert _same(other["module"], ends[0]["module"]), "the processes ended with different weights or ranges"
    if cell.resume:
        broken.mkdir(parents=True, exist_ok=True)
        # Processes that were spawned or forked hand their exceptions on in one of another class.
        with pytest.raises(BrokenOffError if strategy in ("auto", "ddp") else ProcessRaisedException):
            fit(cell, strategy, processes, broken, break_off=True, ckpt_path=None)
        fit(cell, strategy, processes, broken, break_off=False, ckpt_path=broken / "broken_off" / "last.ckpt")
        # Two addends have one sum; of three, DDP adds up some in another order in the first step after each start.
        ulps = 0 if processes <= 2 else 4
        for end, resumed in zip(ends, _ends(broken, processes), strict=True):
            assert _same(end["module"], resumed["module"], ulps), "the resumed run has other weights or ranges"
            assert _same(end["optimizer"], resumed["optimizer"], ulps), "the resumed run has another optimizer"
            assert end["passed"] == resumed["passed"]


def _ends(folder: Path, processes: int) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


def _same(a: Any, b: Any, ulps: int = 0) -> bool:
    """Whether two structures are equal, or their tensors within some units of the last place of the largest value."""
    leaves, structure = pytree.tree_flatten(a)
    others, other_structure = pytree.tree_flatten(b)
    return structure == other_structure and all(_equal(x, y, ulps) for x, y in zip(leaves, others, strict=True))


def _equal(x: Any, y: Any, ulps: int) -> bool:
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.numel():
        return bool((x == y).all()) if isinstance(x, Tensor) else bool(x == y)
    limit = ulps * torch.finfo(x.dtype).eps * float(x.abs().max())
    return bool(((x == y) | ((x - y).abs() <= limit)).all())


def main(folder: Path, strategy: str, processes: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    let_forks_set_threads(strategy)
    found = {}
    for cell in [cell for cell in CELLS if not names or str(cell) in names]:
        try:
            run(cell, strategy, processes, folder)
            found[str(cell)] = ""
        except Exception as error:  # whatever it is, it belongs into the table
            found[str(cell)] = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    (folder / "cells.json").write_text(json.dumps(found))


if __name__ == "__main__":
    quicken_deployment(pytest.MonkeyPatch())
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
