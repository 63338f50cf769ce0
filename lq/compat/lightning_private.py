"""What lq relies on in Lightning that Lightning does not document, under names of lq's own.

``tests/compat/test_lightning_private.py`` tries each of them, and finds uses elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DistributedSampler, SequentialSampler

from lq.compat.packages import is_a

# Attributes of a LightningModule that belong to its run.
TRAINER = "_trainer"
_METRICS = "_metric_attributes"
_MESH = "_device_mesh"


@contextmanager
def without_trainer(module: LightningModule) -> Iterator[None]:
    """The module alone, so that a copy of it does not take a copy of its trainer along.

    Example:
        >>> import copy
        >>> module = LightningModule()
        >>> module.trainer = Trainer(barebones=True, accelerator="cpu")
        >>> with without_trainer(module):
        ...     copied = copy.deepcopy(module)
        >>> getattr(copied, TRAINER) is None, getattr(module, TRAINER) is None
        (True, False)
    """
    trainer: Any = module._trainer
    module._trainer = None
    try:
        yield
    finally:
        module._trainer = trainer


@contextmanager
def without_device_mesh(module: LightningModule) -> Iterator[None]:
    """The module without the processes that its weights are split among, which a copy of it has nothing to do with.

    Example:
        >>> module, mesh = LightningModule(), object()
        >>> module.__dict__[_MESH] = mesh  # as ModelParallelStrategy does
        >>> with without_device_mesh(module):
        ...     print(module.device_mesh)
        None
        >>> module.device_mesh is mesh
        True
    """
    mesh: Any = module.__dict__.get(_MESH)
    if mesh is not None:
        module.__dict__[_MESH] = None
    try:
        yield
    finally:
        if mesh is not None:
            module.__dict__[_MESH] = mesh


def forget_metrics(copied: LightningModule) -> None:
    """Make a copy find its own metrics: Lightning (2.6) caches where each sits by the identity of the original's.

    Example:
        >>> import copy
        >>> module = LightningModule()
        >>> module.__dict__[_METRICS] = {id(module): "accuracy"}  # as the first log() of a metric does
        >>> copied = copy.deepcopy(module)
        >>> forget_metrics(copied)
        >>> copied.__dict__[_METRICS], module.__dict__[_METRICS] is None
        (None, False)
    """
    copied.__dict__[_METRICS] = None


def users_sampler(sampler: DistributedSampler[Any]) -> Any:
    """The sampler that leaves each process a share, without doing so.

    Example:
        >>> type(users_sampler(DistributedSampler([1, 2], num_replicas=2, rank=0))).__name__
        'SequentialSampler'
    """
    shared: Any = sampler.dataset
    return shared._sampler if is_a(sampler, DistributedSamplerWrapper) else SequentialSampler(shared)


def validation_loaders_of(trainer: Trainer) -> Any:
    """As ``trainer.val_dataloaders``, which forgets how they are combined: ``None`` if there are none.

    Returns:
        the loaders in their structure if they run one after another, else a new CombinedLoader of them.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> class Net(LightningModule):
        ...     def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None: ...
        >>> trainer, loaders = Trainer(barebones=True, accelerator="cpu"), {"a": DataLoader([1]), "b": DataLoader([2])}
        >>> _ = trainer.validate(Net(), loaders, verbose=False)
        >>> {name: list(loader) for name, loader in validation_loaders_of(trainer).items()}
        {'a': [tensor([1])], 'b': [tensor([2])]}
    """
    for loop in (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop):
        combined: CombinedLoader | None = loop._combined_loader
        if combined is not None:
            loaders = combined.iterables
            return loaders if combined._mode == "sequential" else combined_like(combined, loaders)
    return None


def logged_by_loaders(trainer: Trainer) -> list[str]:
    """Names of what a validation of several loaders has logged for each of them.

    In the sanity check these are not among ``trainer.callback_metrics``.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> class Net(LightningModule):
        ...     def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        ...         self.log("loss", 0.5, batch_size=1)
        ...     def on_validation_epoch_end(self) -> None:
        ...         print(logged_by_loaders(self.trainer))
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> _ = trainer.validate(Net(), [DataLoader([1]), DataLoader([2])], verbose=False)
        ['loss/dataloader_idx_0', 'loss/dataloader_idx_1']
    """
    found = [metric.meta for metric in (trainer._results or {}).values() if not metric.has_reset]
    return [f"{meta.name}/dataloader_idx_{meta.dataloader_idx}" for meta in found if meta.dataloader_idx is not None]


def combined_like(loader: CombinedLoader, iterables: Any) -> CombinedLoader:
    """Other iterables, combined as those of a loader are.

    Example:
        >>> again = combined_like(CombinedLoader({"a": [1, 2], "b": [3]}, "max_size_cycle"), {"a": [4, 5], "b": [6]})
        >>> [batch for batch, _, _ in again]
        [{'a': 4, 'b': 6}, {'a': 5, 'b': 6}]
    """
    return type(loader)(iterables, loader._mode)


def settings_of_run(trainer: Trainer) -> Mapping[str, Any] | None:
    """The arguments "ckpt_path" and, from Lightning 2.6, "weights_only" of the run that is under way.

    Args:
        trainer: in a hook.

    Returns:
        the arguments; ``None`` outside of a run.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> class Net(LightningModule):
        ...     def validation_step(self, batch: Any, batch_idx: int) -> None:
        ...         print(settings_of_run(self.trainer)["ckpt_path"])
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> _ = trainer.validate(Net(), DataLoader([1]), verbose=False)
        None
        >>> settings_of_run(trainer) is None  # the run is over
        True
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and not (frame.f_code.co_name == "_run" and frame.f_locals.get("self") is trainer):
        frame = frame.f_back
    return None if frame is None else {k: v for k, v in frame.f_locals.items() if k in ("ckpt_path", "weights_only")}


def epochs_behind(checkpoint: Mapping[str, Any]) -> int:
    """The number of epochs whose batches a training had behind it when it wrote a checkpoint.

    Example:
        >>> epochs_behind({"loops": {"fit_loop": {"epoch_progress": {"current": {"processed": 8}}}}, "epoch": 7})
        8
        >>> epochs_behind({"state_dict": {}})
        0
    """
    progress: Any = checkpoint
    for key in ("loops", "fit_loop", "epoch_progress", "current"):
        progress = progress.get(key, {})
    return int(progress.get("processed", 0))
