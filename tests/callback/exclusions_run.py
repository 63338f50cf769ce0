"""Two processes with auto_exclude, whose analyses would differ; each writes what it trained. See test_exclusions.py.

``python exclusions_run.py FOLDER``
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lq.backends.prepare import qconfig_of
from lq.callback import exclusions
from tests.callback.test_exclusions import Planted, callback, loader
from tests.tiny import make_trainer, quicken_deployment

PROCESSES = 2


class Record(L.Callback):
    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        found = {
            "exclude": list(qconfig_of(pl_module.model).exclude),
            "weight": pl_module.model.get_submodule("3").weight.detach().clone(),
        }
        torch.save(found, Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    quicken_deployment(pytest.MonkeyPatch())
    if os.environ.get("LOCAL_RANK", "0") != "0":
        exclusions.find_exclusions = None  # type: ignore[assignment]  # only the first process may look
    trainer = make_trainer(folder, callback(), Record(), max_epochs=1, devices=PROCESSES, strategy="ddp")
    trainer.fit(Planted(), loader(), loader())


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    main(Path(sys.argv[1]))
