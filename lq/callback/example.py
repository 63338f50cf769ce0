"""Inputs of one call of the target, before it is called in the training or where it never is."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from lq.backends.in_place import like
from lq.compat.lightning_private import validation_loaders_of
from lq.compat.packages import overrides
from lq.core.modes import modes_kept
from lq.deployment.evaluation import ValidationData
from lq.lightning_module.copies import detached_copy, free_copies
from lq.lightning_module.last_call import on_cpu
from lq.lightning_module.target import target_of
from lq.lightning_module.validation import validation_samples
from lq.ptq.batches import first_inputs
from lq.tracing.exported_call import call_to_export
from lq.tracing.structure import Inputs

_log = logging.getLogger(__name__)


def validation_loaders(trainer: Trainer) -> Any:
    """The validation data loaders, set up if no validation has run; ``None`` if there are none.

    All processes have to call it.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from lq.lightning_module.quiet import quiet_trainer
        >>> from lq.models.image_classifier import ImageClassifier
        >>> module, loader = ImageClassifier(nn.Linear(2, 2), num_classes=2), DataLoader([(torch.zeros(2), 0)])
        >>> trainer = quiet_trainer(module, max_epochs=1)
        >>> validation_loaders(trainer) is None
        True
        >>> trainer.fit(module, loader, loader)
        >>> validation_loaders(trainer) is loader
        True
    """
    if trainer.val_dataloaders is None and trainer.enable_validation:
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
    return validation_loaders_of(trainer)


def early_validation_loaders(trainer: Trainer, module: LightningModule, who: str) -> Any:
    """The validation data loaders in ``setup`` already; ``None`` if there are none.

    Args:
        trainer: of a fit; all processes have to call it.
        module: the LightningModule.
        who: asks for them.

    Raises:
        ValueError: if the module makes its data in ``setup``, which comes later.

    Example:
        >>> from lightning.pytorch import Callback
        >>> from torch.utils.data import DataLoader
        >>> from lq.lightning_module.quiet import quiet_trainer
        >>> from lq.models.image_classifier import ImageClassifier
        >>> class Ask(Callback):
        ...     def setup(self, trainer, pl_module, stage):
        ...         print(len(early_validation_loaders(trainer, pl_module, "auto_exclude")))
        >>> module, loader = ImageClassifier(nn.Linear(2, 2), num_classes=2), DataLoader([(torch.zeros(2), 0)] * 3)
        >>> quiet_trainer(module, max_epochs=0, callbacks=[Ask()]).fit(module, loader, loader)
        3
    """
    try:
        return validation_loaders(trainer)
    except Exception as error:
        if trainer.datamodule is None and overrides(module, "setup"):  # type: ignore[attr-defined]
            raise ValueError(
                f"{who} asks for the validation data before {type(module).__name__}.setup() has run, and its "
                f"val_dataloader() failed: {error}. Move the data into a LightningDataModule, or give the loaders to "
                "Trainer.fit()."
            ) from error
        raise


def declared_example(module: LightningModule, name: str) -> Inputs | None:
    """What the target is called with when the module is called with its ``example_input_array``.

    Args:
        module: the LightningModule, which stays as it is; one that has no ``forward``, or none that works yet, may
            declare the inputs of the target itself.
        name: of its target.

    Returns:
        positional and keyword inputs; ``None`` if nothing is declared, or neither can be called with it.

    Example:
        >>> from lq.models.image_classifier import ImageClassifier
        >>> module = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), num_classes=2)
        >>> module.example_input_array = torch.ones(1, 1, 2, 2)
        >>> declared_example(module, "model.1")
        ((tensor([[1., 1., 1., 1.]]),), {})
    """
    declared = module.example_input_array
    if declared is None:
        return None
    part = target_of(module, name)
    for owner in (module, part):
        try:
            # What is compiled would be compiled for the float model.
            with modes_kept(module), isolate_rng(), torch.compiler.set_stance("force_eager"):
                return first_inputs(owner.eval(), part, _like(part, copy.deepcopy(declared)), _call)
        except Exception:  # whatever the user's code cannot do before the training
            continue
    return None


def _like(part: nn.Module, declared: Any) -> Any:
    """Inputs as Lightning's precision plugin would give them to the part, on its device."""
    return like(part, ((declared,), {}))[0][0]


def _call(owner: Any, declared: Any) -> Any:
    if isinstance(declared, dict):
        return owner(**declared)
    return owner(*declared) if isinstance(declared, tuple) else owner(declared)


def check_example(trainer: Trainer, module: LightningModule, name: str) -> None:
    """Check, where a training step has called parts of the target but not the target, that something else will.

    Args:
        trainer: after the first training step.
        module: the LightningModule.
        name: of its target.

    Raises:
        ValueError: if the export would have no inputs.

    Example:
        >>> check_example(Trainer(barebones=True), LightningModule(), "model")
        Traceback (most recent call last):
        ...
        ValueError: The training step calls parts of model one by one, and without validation data nothing calls it as a
        whole, so there are no inputs to export it with. Set example_input_array of LightningModule to ...
    """
    if trainer.val_dataloaders is not None or trainer.enable_validation or declared_example(module, name) is not None:
        return
    raise ValueError(
        f"The training step calls parts of {name or 'the module itself'} one by one, and without validation data "
        f"nothing calls it as a whole, so there are no inputs to export it with. Set example_input_array of "
        f"{type(module).__name__} to what it can be called with, or give the fit validation data."
    )


def _validation_example(module: LightningModule, name: str, validation: ValidationData) -> Inputs | None:
    """What the user's validation calls the target with first, on the CPU; ``None`` without validation data.

    Args:
        module: the LightningModule; a copy runs.
        name: of its target.
        validation: the validation data.

    Raises:
        ValueError: if the validation step does not call the target.
    """
    if validation.loaders is None:
        return None
    with isolate_rng():
        samples = validation_samples(module, name, validation.loaders, validation.datamodule, lambda batch: None, 1)
    return samples[0].inputs if samples else None


def first_example(
    trainer: Trainer, module: LightningModule, name: str, validation: ValidationData, required: bool = False
) -> Inputs | None:
    """What the validation step calls the target with first.

    Args:
        trainer: of a fit, in ``setup``; all processes have to call this.
        module: the LightningModule; a copy of it runs, on one batch.
        name: of its target.
        validation: how its validation runs.
        required: whether the inputs are needed, so that what goes wrong with the validation data is an error.

    Returns:
        positional and keyword inputs, on the CPU; ``None`` if the validation gives none before the training.

    Raises:
        Exception: whatever the validation raises, if they are required.

    Example:
        >>> from lightning.pytorch import Callback
        >>> from torch.utils.data import DataLoader
        >>> from lq.lightning_module.quiet import quiet_trainer
        >>> from lq.models.image_classifier import ImageClassifier
        >>> class Ask(Callback):
        ...     def setup(self, trainer, pl_module, stage):
        ...         print(first_example(trainer, pl_module, "model", ValidationData()))
        >>> module, loader = ImageClassifier(nn.Linear(2, 2), num_classes=2), DataLoader([(torch.ones(2), 0)])
        >>> quiet_trainer(module, max_epochs=0, callbacks=[Ask()]).fit(module, loader, loader)
        ((tensor([[1., 1.]]),), {})
    """
    try:
        loaders = early_validation_loaders(trainer, module, "QATCallback")
        return _validation_example(module, name, replace(validation, loaders=loaders))
    except Exception:
        if required:
            raise
        _log.debug("no example from the validation", exc_info=True)
        return None
    finally:
        free_copies(module)


def example_without_training(module: LightningModule, name: str, validation: ValidationData) -> Inputs:
    """Inputs for a fit that resumes from the end of its training, so that no batch runs.

    Args:
        module: the trained module, which stays as it is.
        name: of its target.
        validation: the validation data.

    Returns:
        positional and keyword inputs of the target, on the CPU.

    Raises:
        ValueError: if there are neither validation data nor an ``example_input_array``.

    Example:
        >>> from lq.models.image_classifier import ImageClassifier
        >>> module = ImageClassifier(nn.Linear(2, 2).bfloat16(), num_classes=2)
        >>> module.example_input_array = torch.ones(1, 2, dtype=torch.bfloat16)
        >>> example_without_training(module, "model", ValidationData())
        ((tensor([[1., 1.]]),), {})
    """
    # It is on its accelerator, and perhaps in half precision; the data are not.
    twin = detached_copy(module).float()
    twin.example_input_array = on_cpu(module.example_input_array)
    example = _validation_example(twin, name, validation) or declared_example(twin, name)
    if example is None:
        raise ValueError(
            "This training was over when it was resumed, so nothing has called the quantized target, and without "
            "validation data there are no inputs to export with. Set example_input_array of "
            f"{type(module).__name__} to what it can be called with, or give the fit validation data."
        )
    return call_to_export(target_of(twin, name), on_cpu(example))
