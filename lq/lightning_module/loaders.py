"""Data loaders outside of a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from lq.compat.lightning_private import combined_like, users_sampler
from lq.compat.packages import is_a


def training_data(module: LightningModule, datamodule: LightningDataModule | None = None) -> list[Any]:
    """The training data loaders, without a training.

    Args:
        module: gives the data, if no datamodule does.
        datamodule: is prepared and set up for "fit", as the module otherwise is.

    Example:
        >>> class Data(LightningDataModule):
        ...     def train_dataloader(self):
        ...         return {"labelled": DataLoader([1, 2]), "unlabelled": DataLoader([3])}
        >>> [list(loader) for loader in training_data(LightningModule(), Data())]
        [[tensor([1]), tensor([2])], [tensor([3])]]
    """
    owner: Any = datamodule or module
    owner.prepare_data()
    owner.setup("fit")
    return training_loaders(owner.train_dataloader())


def training_loaders(loaders: Any) -> list[Any]:
    """The loaders, whatever structure holds them.

    Example:
        >>> training_loaders({"a": [1, 2], "b": 3})
        [1, 2, 3]
    """
    if is_a(loaders, CombinedLoader):
        return list(loaders.flattened)
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        return [loader for each in loaders for loader in training_loaders(each)]
    return [loaders]


@contextmanager
def generators_kept(loaders: Any) -> Iterator[None]:
    """Within the block loaders may draw from random generators of the user's own, which then are what they were.

    So the next pass draws the same samples.

    Example:
        >>> loader = DataLoader(range(100), shuffle=True, generator=torch.Generator())
        >>> with generators_kept(loader):
        ...     first = next(iter(loader))
        >>> torch.equal(first, next(iter(loader)))
        True
    """
    owners = [owner for loader in training_loaders(loaders) for owner in _owners(loader)]
    found = [getattr(owner, "generator", None) for owner in owners]
    before = [(each, each.get_state()) for each in found if isinstance(each, torch.Generator)]
    try:
        yield
    finally:
        for each, state in before:
            each.set_state(state)


def _owners(loader: Any) -> list[Any]:
    """What may have a generator."""
    drawn = getattr(loader, "batch_sampler", None)
    return [loader, getattr(loader, "sampler", None), drawn, getattr(drawn, "sampler", None)]


def _each(loaders: Any, change: Callable[[DataLoader[Any]], DataLoader[Any]]) -> Any:
    """The loaders in their structure, each that is a DataLoader changed."""
    if is_a(loaders, CombinedLoader):
        return combined_like(loaders, _each(loaders.iterables, change))
    if isinstance(loaders, (list, tuple)):
        return [_each(loader, change) for loader in loaders]
    if isinstance(loaders, Mapping):
        return {key: _each(loader, change) for key, loader in loaders.items()}
    return change(loaders) if isinstance(loaders, DataLoader) else loaders


def undistributed(loaders: Any) -> Any:
    """The loaders without the samplers that leave each process a share of the data; the user's own samplers stay.

    Example:
        >>> sampler = DistributedSampler(range(4), num_replicas=2, rank=0, shuffle=False)
        >>> loader = DataLoader(range(4), sampler=sampler, batch_size=2)
        >>> [batch.tolist() for batch in loader], [batch.tolist() for batch in undistributed(loader)]
        ([[0, 2]], [[0, 1], [2, 3]])
    """
    return _each(loaders, _whole)


def _whole(loader: DataLoader[Any]) -> DataLoader[Any]:
    sampler: Any = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if not isinstance(sampler, DistributedSampler):
        return loader
    return _over(loader, users_sampler(sampler))


def spread(loaders: Any, batches: int) -> Any:
    """The loaders, those whose order may be changed with so many batches from all over their data, always the same.

    Others stay as they are: streams, and what comes from a sampler or batch sampler of the user's own.

    Example:
        >>> loader = DataLoader(range(100), batch_size=2)
        >>> [batch.tolist() for batch in spread(loader, 2)]
        [[0, 33], [66, 99]]
    """
    return _each(undistributed(loaders), lambda loader: _spread(loader, batches))


def _spread(loader: DataLoader[Any], batches: int) -> DataLoader[Any]:
    drawn: Any = loader.batch_sampler
    indices = _indices(drawn.sampler) if type(drawn) is BatchSampler else None
    if indices is None:
        return loader
    wanted = batches * drawn.batch_size
    if len(indices) > wanted:
        last = len(indices) - 1
        indices = [indices[i * last // max(wanted - 1, 1)] for i in range(wanted)]
    return _over(loader, indices)


def _indices(sampler: Any) -> Sequence[int] | None:
    """What a sampler draws, in order; None if only its owner knows."""
    if type(sampler) in (SequentialSampler, RandomSampler):
        return range(len(sampler.data_source))
    return sorted(int(index) for index in sampler.indices) if type(sampler) is SubsetRandomSampler else None


def _over(loader: DataLoader[Any], sampler: Any) -> DataLoader[Any]:
    """The loader with another sampler behind its batches; of a subclass, with all that it does to them."""
    changes: dict[str, Any] = {"sampler": sampler}
    if loader.batch_sampler is not None:
        changes["batch_sampler"] = copy.copy(loader.batch_sampler)
        changes["batch_sampler"].sampler = sampler
    return loader_beside(loader, **changes)


def loader_beside(loader: DataLoader[Any], **changes: Any) -> DataLoader[Any]:
    """A copy of a loader that may run while the original is under way, with workers of its own for as long as it does.

    Args:
        loader: of any subclass.
        changes: other attributes of the copy.

    Example:
        >>> loader = DataLoader([1, 2, 3])
        >>> running = iter(loader)
        >>> next(running), next(iter(loader_beside(loader))), next(running)
        (tensor([1]), tensor([1]), tensor([2]))
    """
    twin = object.__new__(type(loader))
    # A DataLoader refuses assignments, for the sake of an iterator that may be under way; a copy has none.
    twin.__dict__.update(
        {**vars(loader), "persistent_workers": False, "pin_memory": False, "_iterator": None, **changes}
    )
    return twin
