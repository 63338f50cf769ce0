"""A fit that resumes from the end of its training: no batch runs, but there is still something to deploy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lq.callback.preparation import declared_example
from lq.evaluation import Judge, compare_on_validation_data
from lq.export.signature import Inputs
from lq.tap import on_cpu
from lq.target import detached_copy, target_of


def validation_loaders(trainer: Trainer) -> Any:
    """The validation data loaders, set up if no validation has run; ``None`` if there are none.

    All processes have to call it.
    """
    if trainer.val_dataloaders is None and trainer.enable_validation:
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
    return trainer.val_dataloaders


def inputs_without_training(module: LightningModule, name: str, judge: Judge) -> Inputs:
    """Inputs of one call of the target, from the first validation batch or else from ``example_input_array``.

    Args:
        module: the trained module, which stays as it is.
        name: of its target.
        judge: the validation data.

    Returns:
        positional and keyword inputs, on the CPU.

    Raises:
        ValueError: if there is neither.
    """
    if judge.loaders is not None:
        once = replace(judge, limit=1, show_progress=False)
        _, calls = compare_on_validation_data(detached_copy(module), name, {}, once, keep=1)
        if calls:
            return calls[0][0]
    declared = declared_example(module, target_of(module, name))
    if not declared:
        raise ValueError(
            "This training was over when it was resumed, so nothing has called the quantized target, and without "
            "validation data there are no inputs to export with. Set example_input_array of "
            f"{type(module).__name__}, or give the fit validation data."
        )
    args, kwargs = on_cpu(declared)
    return args, kwargs
