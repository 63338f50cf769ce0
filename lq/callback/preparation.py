"""What ``setup`` does: the target of a LightningModule is found and prepared."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lq.backends.in_place import like
from lq.backends.prepare import is_planned, prepare, qconfig_of
from lq.callback.checkpoint_to_load import Known
from lq.callback.compilation import check_target_is_not_compiled
from lq.callback.example import declared_example, first_example
from lq.callback.processes import splits_weights
from lq.checkpoints.entry import KEY, CheckpointEntry
from lq.compat.packages import overrides
from lq.config.qconfig import QConfig
from lq.deployment.evaluation import ValidationData
from lq.instrument.record import has_lazy_layers, initialize_lazy
from lq.lightning_module.copies import float_copy
from lq.lightning_module.target import build_layers, find_target, is_target_prepared, target_of
from lq.tracing.structure import Inputs

_IN_INIT = (
    "With ModelParallelStrategy, build the layers with their weights in __init__, and call only fully_shard in "
    "configure_model."
)


def choose_target(module: LightningModule, target: str | None, trainer: Trainer | None = None) -> str:
    """The name of the part to quantize, once it exists.

    Args:
        module: the LightningModule; ``configure_model`` is called if it has one.
        target: dotted name, or ``None`` to find it.
        trainer: of the run, under whose strategy ``configure_model`` may be going to split the weights among processes;
            then it is not called, because quantization is planned while they are whole.

    Returns:
        the name.

    Raises:
        ValueError: if there is no such target.

    Example:
        >>> class Late(LightningModule):
        ...     def configure_model(self):
        ...         self.model, self.loss = nn.Sequential(nn.Linear(4, 2)), nn.MSELoss()
        >>> choose_target(Late(), target=None)
        'model'
    """
    if trainer is None or not splits_weights(trainer.strategy):
        build_layers(module, trainer)
    return find_target(module, target)


def prepare_target(
    trainer: Trainer,
    module: LightningModule,
    name: str,
    qconfig: QConfig,
    validation: ValidationData,
    checkpoint_of_run: Known,
) -> nn.Module | None:
    """Prepare the target in its place; a module that is prepared already is only checked.

    Args:
        trainer: in ``setup``.
        module: the LightningModule.
        name: of its target.
        qconfig: what to quantize and how.
        validation: how the user's validation runs, should it have to show what the target is called with.
        checkpoint_of_run: gives the checkpoint that is going to be loaded.

    Returns:
        a float copy of the target on the CPU, or ``None`` if it was prepared before.

    Raises:
        ValueError: if the target was prepared otherwise, or ``configure_model`` undoes the preparation.

    Example:
        >>> import torch
        >>> module = LightningModule()
        >>> module.model, module.example_input_array = nn.Sequential(nn.Linear(4, 2)), torch.zeros(1, 4)
        >>> settings, trainer = (QConfig(), ValidationData()), Trainer(barebones=True)
        >>> float_model = prepare_target(trainer, module, "model", *settings, checkpoint_of_run=dict)
        >>> is_target_prepared(module, "model"), float_model
        (True, Sequential(
          (0): Linear(in_features=4, out_features=2, bias=True)
        ))
    """
    float_model: nn.Module | None = None
    if is_target_prepared(module, name):
        _check_same_qconfig(module, name, qconfig)
    else:
        part = target_of(module, name)
        check_target_is_not_compiled(part, name)
        prepare_it = _preparation(trainer, module, name, qconfig, validation, checkpoint_of_run)
        if splits_weights(trainer.strategy):
            _check_has_weights(part, name)
        float_model = float_copy(part)
        prepare_it(part)
        if splits_weights(trainer.strategy) and not is_planned(part):
            raise ValueError(
                f"{name or 'The module itself'} could not be called before configure_model splits its weights, so it "
                f"cannot be planned. Set example_input_array of {type(module).__name__} to what it can be called with."
            )
    if overrides(module, "configure_model") and not splits_weights(trainer.strategy):
        _check_configure_model(module, name)
    return float_model


def check_still_prepared(module: LightningModule, name: str) -> None:
    """Refuse a module whose ``configure_model`` has put another target in the place of the prepared one.

    Raises:
        ValueError: if it has.

    Example:
        >>> module = LightningModule()
        >>> module.model = nn.Sequential(nn.Linear(4, 2))
        >>> check_still_prepared(module, "model")
        Traceback (most recent call last):
        ...
        ValueError: LightningModule.configure_model() built model again, which undoes the preparation for QAT. ...
    """
    if not is_target_prepared(module, name):
        raise ValueError(
            f"{type(module).__name__}.configure_model() built {name or 'the layers'} again, which undoes the "
            f"preparation for QAT. {_IN_INIT}"
        )


def _check_has_weights(part: nn.Module, name: str) -> None:
    if any(parameter.is_meta for parameter in part.parameters()):
        raise ValueError(f"The weights of {name or 'the module itself'} are on the meta device. {_IN_INIT}")


def _preparation(
    trainer: Trainer,
    module: LightningModule,
    name: str,
    qconfig: QConfig,
    validation: ValidationData,
    checkpoint_of_run: Known,
) -> Callable[[nn.Module], nn.Module]:
    """How the target will be prepared: as in the checkpoint that is going to be loaded, or from what it is called with.

    Lazy layers, which a copy of the float model needs first, are initialized.
    """
    plain, part = checkpoint_of_run().get(KEY), target_of(module, name)
    if plain is not None:
        entry = CheckpointEntry.from_dict(plain)
        if has_lazy_layers(part):
            _initialize_lazy(part, name, declared_example(module, name) or entry.example)
        return lambda part: entry.prepare(part, name, qconfig)
    example = declared_example(module, name)
    if example is None and trainer.state.fn == "fit":
        example = first_example(trainer, module, name, validation, required=qconfig.backend == "pt2e")
    if example is not None:
        example = like(part, example)  # configure_model builds in the precision of the training
    _initialize_lazy(part, name, example)
    return lambda part: prepare(part, qconfig, *(example or ()))


def _initialize_lazy(part: nn.Module, name: str, example: Inputs | None) -> None:
    if example is not None:
        initialize_lazy(part, *example)
    elif has_lazy_layers(part):
        raise ValueError(
            f"{name or 'The module itself'} has lazy layers, which get their weights in their first call, and nothing "
            "shows what it is called with. Set self.example_input_array in __init__ of the LightningModule, give the "
            "fit validation data, or call the module once there."
        )


def _check_same_qconfig(module: LightningModule, name: str, qconfig: QConfig) -> None:
    theirs = qconfig_of(target_of(module, name))
    if theirs != qconfig:
        raise ValueError(
            f"{type(module).__name__} was prepared for QAT before, with {theirs}, but this QATCallback has "
            f"{qconfig}. Use the same qconfig, or start from a new module."
        )


def _check_configure_model(module: LightningModule, name: str) -> None:
    module.configure_model()  # as Lightning is going to
    if not is_target_prepared(module, name):
        raise ValueError(
            f"{type(module).__name__}.configure_model() builds the layers again at each call, which undoes the "
            "preparation for QAT. It should build them only once, as Lightning recommends: set self.model = None in "
            "__init__, and begin configure_model with `if self.model is not None: return`."
        )
