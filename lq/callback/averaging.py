"""Averaging, pruning and finetuning beside QAT: what of it is refused, and what must not be averaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, ModelPruning, StochasticWeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lq.backends.prepare import is_prepared, state_of
from lq.compat.packages import is_a
from lq.core.lsq import LearnedScale

try:
    from lightning.pytorch.callbacks import WeightAveraging as _WeightAveraging
except ImportError:  # before Lightning 2.6
    _WeightAveraging = None  # type: ignore[assignment,misc]


def check_averaging(own: Callback, trainer: Trainer) -> None:
    """Refuse callbacks, and averages in the module, that would spoil the quantized model.

    Raises:
        ValueError: if one copies the model before QAT prepares it, resets BatchNorm statistics, masks weights, or
            cannot average what a prepared model holds.

    Example:
        >>> from lq.callback import QATCallback
        >>> own = QATCallback()
        >>> check_averaging(own, Trainer(barebones=True, callbacks=[own, StochasticWeightAveraging(0.01)]))
        Traceback (most recent call last):
        ...
        ValueError: StochasticWeightAveraging cannot be used with QATCallback: it sets a learning rate of its own ...
    """
    callbacks = _callbacks(trainer)
    if any(is_a(c, StochasticWeightAveraging) for c in callbacks):
        raise ValueError(
            "StochasticWeightAveraging cannot be used with QATCallback: it sets a learning rate of its own and resets "
            "the BatchNorm statistics that QAT has frozen. Take an average that leaves both alone: "
            "callbacks=[QATCallback(...), EMAWeightAveraging()] (Lightning 2.6 or newer)."
        )
    _check_pruning(callbacks)
    _check_hand_made(trainer.lightning_module)
    early = next(_averaging(callbacks[: callbacks.index(own)]), None)
    if early is not None:
        name = type(early).__name__
        raise ValueError(
            f"{name} copies the model in its setup, before QATCallback has prepared it. "
            f"Put QATCallback first: callbacks=[QATCallback(...), {name}(...)]."
        )
    for callback in _averaging(callbacks):
        _check_integers(callback)


def _check_pruning(callbacks: list[Any]) -> None:
    name = next((type(c).__name__ for c in callbacks if is_a(c, ModelPruning)), None)
    if name is not None:
        raise ValueError(
            f"{name} cannot be used with QATCallback: it puts masks in the place of the weights that QAT scales and "
            f"rounds. Prune in float, with {name}(..., make_pruning_permanent=True), and start QAT from that "
            "checkpoint; zeros stay zeros on every grid, and small weights near them are rounded to zero."
        )


def _check_hand_made(module: LightningModule) -> None:
    """An average that the user has made of the float model is not one of the model that is trained."""
    for name, held in module.named_modules():
        if isinstance(held, AveragedModel) and not _is_prepared(held):
            raise ValueError(
                f"{type(module).__name__}.{name} is an AveragedModel, a copy of the float model that QAT does not "
                "prepare. Take the callback that averages the prepared one: callbacks=[QATCallback(...), "
                "EMAWeightAveraging()] (Lightning 2.6 or newer); or make the copy in on_fit_start, behind the "
                "preparation."
            )


def _is_prepared(held: nn.Module) -> bool:
    return any(is_prepared(part) for part in held.modules())


def _check_integers(callback: Any) -> None:
    """Buffers of integers, which every prepared model has, are averaged by the same function."""
    average = getattr(callback, "_kwargs", {}).get("multi_avg_fn")
    if average is None or not getattr(callback, "_use_buffers", True):
        return
    counts = [torch.ones(1, dtype=torch.int64)]
    try:
        average([counts[0].clone()], counts, torch.tensor(1))
    except RuntimeError as error:
        name = type(callback).__name__
        raise ValueError(
            f"the multi_avg_fn of {name} cannot average integers, which the buffers of a prepared model hold: {error} "
            f"Write {name}(use_buffers=False, ...), or give avg_fn in its place."
        ) from error


def check_finetuning(own: Callback, trainer: Trainer) -> None:
    """Refuse to resume a run behind a callback that restores parameter groups, as if their rates were initial ones.

    Raises:
        ValueError: if one comes before QATCallback.

    Example:
        >>> from lightning.pytorch.callbacks import BackboneFinetuning
        >>> from lq.callback import QATCallback
        >>> own = QATCallback()
        >>> trainer = Trainer(barebones=True, callbacks=[BackboneFinetuning(), own])
        >>> trainer.state.fn = "fit"  # as trainer.fit(...) sets it
        >>> check_finetuning(own, trainer)
        Traceback (most recent call last):
        ...
        ValueError: BackboneFinetuning restores the learning rates of this checkpoint before QATCallback has noted ...
    """
    callbacks = _callbacks(trainer)
    before = callbacks[: callbacks.index(own)]
    name = next((type(c).__name__ for c in before if is_a(c, BaseFinetuning)), None)
    if name is not None and trainer.state.fn == "fit":
        raise ValueError(
            f"{name} restores the learning rates of this checkpoint before QATCallback has noted the initial ones. "
            f"List QATCallback first, callbacks=[QATCallback(...), {name}(...)]; the checkpoint still fits."
        )


def averages_of(trainer: Trainer) -> list[nn.Module]:
    """The averaged copies of the running module that callbacks such as ``EMAWeightAveraging`` hold.

    Args:
        trainer: of a run; before its ``setup`` there are none.

    Example:
        >>> averages_of(Trainer(barebones=True))
        []
    """
    # Lightning (2.6) has no public name for the averaged model.
    found = (getattr(callback, "_average_model", None) for callback in _averaging(_callbacks(trainer)))
    return [average.module for average in found if average is not None]


def share_quantization_state(target: nn.Module, average: nn.Module) -> None:
    """Give an averaged copy of a prepared target the ranges and the phase of the running one.

    An average of ranges is none: before its first batch a range is infinite, and so would stay every mean with it.

    Args:
        target: the running one.
        average: its copy.

    Example:
        >>> import copy
        >>> from lq.backends.prepare import prepare
        >>> from lq.ptq.calibrate import calibrate
        >>> target = prepare(nn.Sequential(nn.Linear(2, 1)))
        >>> average = copy.deepcopy(target)
        >>> _ = calibrate(target, [torch.tensor([[0.0, 4.0]])])
        >>> share_quantization_state(target, average)
        >>> state_of(average).max_val[0], state_of(average).fake_quant
        (tensor(4.), True)
    """
    state, running = state_of(average), state_of(target)
    state.load_state_dict(running.state_dict())
    _share_learned_scales(target, average)


def _share_learned_scales(target: nn.Module, average: nn.Module) -> None:
    """A start that was searched for is 0 before, which a slow average would remember for a thousand steps."""
    running = dict(target.named_modules())
    for key, copied in average.named_modules():
        own = running.get(key)
        if isinstance(copied, LearnedScale) and isinstance(own, LearnedScale):
            copied.load_state_dict(own.state_dict())


def _callbacks(trainer: Trainer) -> list[Any]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def _averaging(callbacks: list[Any]) -> Iterator[Any]:
    if _WeightAveraging is not None:
        yield from (c for c in callbacks if is_a(c, _WeightAveraging))
