"""A fit that starts from a float checkpoint: from its weights alone, with new epochs and new optimizers."""

from __future__ import annotations

import pickle
from pathlib import Path

from lightning.pytorch import LightningModule
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lq.callback.checkpoint_to_load import Known
from lq.checkpoints.checkpoint import Checkpoint
from lq.lightning_module.target import is_target_prepared

_STARTED = "_lq_started_from"  # which a validation before the fit may have done


def start_from(path: str | Path, module: LightningModule, name: str, checkpoint_of_run: Known) -> None:
    """Give a float module the weights of a checkpoint, unless it has weights of its own run.

    Args:
        path: of the checkpoint.
        module: the LightningModule, with its layers; in ``setup`` of its first run.
        name: of its target.
        checkpoint_of_run: gives the checkpoint that is going to be loaded.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint of the float module, or holds more than plain data.

    Example:
        >>> import tempfile, torch
        >>> module = LightningModule()
        >>> module.model = torch.nn.Linear(1, 1, bias=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"model.weight": torch.ones(1, 1)}}, f"{folder}/float.ckpt")
        ...     start_from(f"{folder}/float.ckpt", module, "model", checkpoint_of_run=dict)
        >>> module.model.weight.item()
        1.0
    """
    if module.__dict__.get(_STARTED) == str(path):
        return
    if is_target_prepared(module, name):
        rank_zero_warn(
            f"lq: float_ckpt_path={str(path)!r} is not read, because this {type(module).__name__} was prepared for QAT "
            "before. Start from a new module, or leave it out."
        )
    elif checkpoint_of_run():
        rank_zero_info(f"lq: float_ckpt_path={str(path)!r} is not read, because ckpt_path has the weights of this run")
    else:
        _read(path).load_float(module)
        rank_zero_info(f"lq: starting from the weights of {path}")
        module.__dict__[_STARTED] = str(path)


def _read(path: str | Path) -> Checkpoint:
    try:
        return Checkpoint.read(path)
    except ValueError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        raise ValueError(
            f"float_ckpt_path: {path} holds more than plain data, such as hyperparameters of a class of its own, and "
            "reading those may run code. If you trust where it comes from, leave float_ckpt_path out and write: "
            "module.load_state_dict(torch.load(path, weights_only=False)['state_dict'])."
        ) from error
