"""Ranges of activations from histograms of the user's own training batches, right before QAT starts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lq.backends.prepare import is_planned, plan_of, qconfig_of, state_of
from lq.callback.announcements import has_room_for_bar, say
from lq.callback.processes import copy_on_first_process
from lq.callback.progress import is_dev_run
from lq.config.presets import PRESETS
from lq.config.schedule import QATSchedule
from lq.lightning_module.loaders import generators_kept, loader_beside, spread, training_loaders
from lq.lightning_module.other_batches import samples_of_each
from lq.lightning_module.target import target_of
from lq.lightning_module.validation import Sample, call_sample
from lq.messages import one_line
from lq.ptq.calibrate import calibrate

# A few dozen batches are enough for a histogram; some 100 calibrate a model (Krishnamoorthi, arXiv:1806.08342).
BATCHES = 32


def with_calibration(schedule: QATSchedule, target: nn.Module) -> QATSchedule:
    """The schedule with the number of batches that calibrate, where that is left to lq.

    With few bits, of activations or of weights, QAT starts from a post-training quantization, which is evaluated, too.
    Below 8 bits a range that follows minimum and maximum wastes levels on outliers: MobileNetV2 with weights and
    activations of 4 bits on Fashion-MNIST came to 88.3 % with such ranges, and to 89.9 % with ranges of histograms that
    were held.

    Args:
        schedule: the user's.
        target: prepared; without a plan it has no grids yet.

    Returns:
        the same with ``calibration`` set.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> from lq.config.qconfig import QConfig
        >>> four = prepare(nn.Sequential(nn.Linear(4, 2)), QConfig(weight={"quant_min": -7, "quant_max": 7}))
        >>> with_calibration(QATSchedule(), four).calibration
        32
    """
    if schedule.calibration is not None:
        return schedule
    return replace(schedule, calibration=BATCHES if _has_few_bits(target) else 0)


def _has_few_bits(target: nn.Module) -> bool:
    """Whether an activation has fewer than 8 bits, or a weight fewer than the preset wants."""
    if not is_planned(target):
        return False
    sites, usual = plan_of(target).sites, PRESETS[qconfig_of(target).preset].weight.bits
    assert sites is not None
    return any(spec.bits < 8 for spec in sites.specs) or any(layer.spec.bits < usual for layer in sites.layers)


def calibrate_at_start(trainer: Trainer, module: LightningModule, name: str, schedule: QATSchedule) -> QATSchedule:
    """Give the target ranges from the training data: histograms of what ``validation_step`` calls it with.

    A copy runs, with the weights of now, in the first process; no random number of the training is used up. Slots with
    an observer of the user's choice keep that, the others are observed by histograms. Should it fail, the observers do
    their work in training, as without it.

    Args:
        trainer: of the fit.
        module: the LightningModule, with its target prepared.
        name: of the target.
        schedule: from :func:`with_calibration`.

    Returns:
        the schedule that is followed from now on.

    Example:
        >>> from lightning.pytorch import Callback
        >>> from lq.backends.prepare import prepare
        >>> from lq.lightning_module.quiet import quiet_trainer
        >>> from lq.models.image_classifier import ImageClassifier
        >>> class Calibrate(Callback):
        ...     def on_train_start(self, trainer, module):
        ...         calibrate_at_start(trainer, module, "model", QATSchedule(calibration=4))
        >>> module = ImageClassifier(prepare(nn.Sequential(nn.Linear(1, 2))), num_classes=2)
        >>> loader = DataLoader([(torch.tensor([float(i)]), 0) for i in range(8)], batch_size=1)
        >>> quiet_trainer(module, max_epochs=1, callbacks=[Calibrate()]).fit(module, loader, loader)
        >>> state_of(module.model).max_val[0]
        tensor(7.)
    """
    if not schedule.calibration:
        return schedule
    limit = 1 if is_dev_run(trainer) else schedule.calibration
    state = state_of(target_of(module, name))
    say(trainer, f"calibrating the ranges of activations on up to {limit} training batches")
    try:
        # In float32 like its samples, whatever the precision of the training.
        found = copy_on_first_process(trainer, module, lambda twin: _ranges(trainer, twin.float(), name, limit))
    except Exception as error:  # whatever the user's code raises where it was not written for
        reason = one_line(error)
        rank_zero_warn(
            f"lq: ranges could not be calibrated before QAT ({type(error).__name__}: {reason}); observers find them "
            "in training instead. QATSchedule(calibration=0) avoids the attempt."
        )
        return schedule.without_calibration()
    with torch.no_grad():
        state.settle()
        for own, new in zip((state.min_val, state.max_val), found, strict=True):
            own.copy_(new)
    return schedule


def _ranges(trainer: Trainer, twin: LightningModule, name: str, limit: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of every slot, on the CPU."""
    prepared = target_of(twin, name)
    state = state_of(prepared)
    if not state.names:
        raise ValueError("the target is planned at its first call; give the module an example_input_array")
    state.waits = False
    state.observe_by("histogram")
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    calibrate(
        prepared,
        training_samples(twin, name, trainer.train_dataloader, datamodule, limit),
        call_sample,
        limit,
        show_progress=has_room_for_bar(trainer),
    )
    state.settle()
    return state.min_val.clone(), state.max_val.clone()


def training_samples(
    module: LightningModule, name: str, loaders: Any, datamodule: LightningDataModule | None, limit: int
) -> Iterator[Sample]:
    """What reaches the target when ``validation_step`` gets training batches, from all over the data of each loader.

    Args:
        module: a LightningModule; a copy runs.
        name: of its target.
        loaders: of the training, which may be in the middle of them; copies run.
        datamodule: whose transfer hooks belong to them.
        limit: batches at most.

    Yields:
        a sample for each batch, without labels.

    Raises:
        Exception: what the validation step has raised, if it takes the batches of no loader.
        ValueError: if it does not call the target, or the data can be gone through only once.

    Example:
        >>> from lq.models.image_classifier import ImageClassifier
        >>> module = ImageClassifier(nn.Linear(1, 2), num_classes=2)
        >>> loader = DataLoader([(torch.tensor([float(i)]), 0) for i in range(10)], batch_size=1, shuffle=True)
        >>> [sample.inputs[0][0].item() for sample in training_samples(module, "model", loader, None, limit=4)]
        [0.0, 3.0, 6.0, 9.0]
    """
    each = training_loaders(loaders)
    share = math.ceil(limit / max(len(each), 1))
    with generators_kept(loaders):
        yield from samples_of_each(module, name, [_Beside(spread(one, share)) for one in each], datamodule, limit)


class _Beside:
    """Batches of a copy of a loader: the training is in the middle of that itself."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        loader = self.loader
        data = loader.dataset if isinstance(loader, DataLoader) else loader
        is_stream = not isinstance(loader, DataLoader) or isinstance(data, IterableDataset)
        if is_stream and iter(data) is data:
            raise ValueError(f"the training data, a {type(data).__name__}, can be gone through only once")
        return iter(loader_beside(loader) if isinstance(loader, DataLoader) else loader)
