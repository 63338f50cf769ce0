"""Which weights of a run are deployed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_info

from lq.packages import is_a

LAST = "the last step"


def load_best(trainer: Trainer, module: LightningModule, name: str) -> str:
    """Load the best quantization-aware weights that a monitoring ModelCheckpoint kept into ``module``.

    Args:
        trainer: of the run that ended.
        module: a copy of the trained module, holding the last weights.
        name: of its target.

    Returns:
        Where the weights are from: a checkpoint's path, or "the last step" if there is no such checkpoint.
    """
    key = f"{name}.qat_state._extra_state" if name else "qat_state._extra_state"
    paths = list(_best_first(trainer))
    for path in paths:
        with get_filesystem(path).open(path, "rb") as file:
            # Written by this very run, so it may hold whatever the user's hyperparameters are.
            saved = torch.load(file, map_location="cpu", weights_only=False)["state_dict"]
        if saved.get(key, {}).get("fake_quant", False):
            module.load_state_dict(saved, strict=module.strict_loading)
            return path
    if paths:
        rank_zero_info(
            f"lq: the best checkpoint, {paths[0]}, is from before QAT started; converting the last weights. "
            "To have the best of the QAT epochs, keep more checkpoints: ModelCheckpoint(save_top_k=-1, ...)."
        )
    return LAST


def _best_first(trainer: Trainer) -> Iterator[str]:
    """Paths or URLs of what the first ModelCheckpoint with a monitor has kept."""
    checkpoints = [c for c in trainer.checkpoint_callbacks if is_a(c, ModelCheckpoint) and c.monitor]
    if not checkpoints:
        return
    kept = checkpoints[0].best_k_models
    ranked = sorted(kept, key=lambda path: float(kept[path]), reverse=checkpoints[0].mode == "max")
    best = checkpoints[0].best_model_path
    yield from (path for path in dict.fromkeys([best, *ranked]) if path and get_filesystem(path).isfile(path))
