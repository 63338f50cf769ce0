"""Data loaders outside of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Subset


def training_batches(module: LightningModule, datamodule: LightningDataModule | None = None) -> Iterator[Any]:
    """The batches of the training data, on the CPU, without a training."""
    return _batches("fit", "train_dataloader", module, datamodule)


def validation_batches(module: LightningModule, datamodule: LightningDataModule | None = None) -> list[Any]:
    """The batches of the validation data, on the CPU."""
    return list(_batches("validate", "val_dataloader", module, datamodule))


def _batches(stage: str, loader: str, module: LightningModule, datamodule: LightningDataModule | None) -> Iterator[Any]:
    owner: Any = datamodule or module
    owner.prepare_data()
    owner.setup(stage)
    loaders = getattr(owner, loader)()
    for one in loaders if isinstance(loaders, (list, tuple)) else [loaders]:
        yield from one


def _each(loaders: Any, change: Callable[[DataLoader[Any]], DataLoader[Any]]) -> Any:
    """The loaders in their structure, each that is a DataLoader changed."""
    if isinstance(loaders, (list, tuple)):
        return [_each(loader, change) for loader in loaders]
    if isinstance(loaders, Mapping):
        return {key: _each(loader, change) for key, loader in loaders.items()}
    return change(loaders) if isinstance(loaders, DataLoader) else loaders


def undistributed(loaders: Any) -> Any:
    """The loaders without the samplers that leave each process a share of the data."""

    def whole(loader: DataLoader[Any]) -> DataLoader[Any]:
        return _over(loader, loader.dataset) if isinstance(loader.sampler, DistributedSampler) else loader

    return _each(loaders, whole)


def spread(loaders: Any, batches: int) -> Any:
    """The loaders, those of a map-style data set with so many batches from all over it, always the same ones.

    Example:
        >>> loader = DataLoader(range(100), batch_size=2)
        >>> [batch.tolist() for batch in spread(loader, 2)]
        [[0, 33], [66, 99]]
    """
    return _each(loaders, lambda loader: _spread(loader, batches))


def _spread(loader: DataLoader[Any], batches: int) -> DataLoader[Any]:
    if loader.batch_size is None or isinstance(loader.dataset, IterableDataset):
        return loader
    size, wanted = len(loader.dataset), batches * loader.batch_size  # type: ignore[arg-type]
    if size <= wanted:
        return _over(loader, loader.dataset)
    return _over(loader, Subset(loader.dataset, torch.linspace(0, size - 1, wanted).long().tolist()))


def _over(loader: DataLoader[Any], dataset: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
    )
