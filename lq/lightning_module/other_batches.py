"""What reaches the target when the user's validation step gets other batches than those of the validation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from inspect import signature
from itertools import islice
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from lq.lightning_module.copies import detached_copy
from lq.lightning_module.last_call import OneOfTheCalls
from lq.lightning_module.target import target_of
from lq.lightning_module.validation import Sample, SampleCollector, validate_alone
from lq.messages import one_line

_AT_ONCE = 8  # batches: a validation has its price, and so has keeping them


def samples_of(
    module: LightningModule, name: str, batches: Iterable[Any], datamodule: LightningDataModule | None
) -> Iterator[Sample]:
    """What reaches the target when ``validation_step`` gets these batches, without labels; a few are held at a time.

    Args:
        module: any LightningModule; a copy runs, with the weights it has now.
        name: of its target.
        batches: on the CPU, such as those of the training.
        datamodule: whose transfer hooks belong to them.

    Yields:
        a sample for each batch: of a step that calls the target several times, one of these calls.

    Raises:
        ValueError: if the validation step does not call the target.

    Example:
        >>> import torch
        >>> from lq.models.image_classifier import ImageClassifier
        >>> module = ImageClassifier(torch.nn.Linear(2, 2), num_classes=2)
        >>> batches = [(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))]
        >>> [sample.inputs[0][0].shape for sample in samples_of(module, "model", batches, None)]
        [torch.Size([3, 2])]
    """
    twin = detached_copy(module).float()  # as its data are, whatever the precision of the training
    collector = SampleCollector(OneOfTheCalls(target_of(twin, name)), lambda batch: None)
    remaining = iter(batches)
    while some := list(islice(remaining, _AT_ONCE)):
        validate_alone(twin, _loaders_for(twin, some), datamodule, None, collector)
        collector.tap.check()
        yield from collector.samples
        collector.samples.clear()


def samples_of_each(
    module: LightningModule,
    name: str,
    loaders: Sequence[Iterable[Any]],
    datamodule: LightningDataModule | None,
    limit: int,
) -> Iterator[Sample]:
    """What reaches the target when ``validation_step`` gets batches of several data loaders, the same number of each.

    A loader that has fewer gives all that it has. One whose batches the step does not take, such as those without
    labels, is left out.

    Args:
        module: as for :func:`samples_of`, and so are ``name`` and ``datamodule``.
        name: of its target.
        loaders: of any data, such as those of the training.
        datamodule: whose transfer hooks belong to them.
        limit: batches at most, of all together.

    Yields:
        a sample for each batch.

    Raises:
        Exception: what the step has raised, if it takes the batches of none.

    Example:
        >>> import torch
        >>> from lq.models.image_classifier import ImageClassifier
        >>> module = ImageClassifier(torch.nn.Linear(1, 2), num_classes=2)
        >>> day, night = (DataLoader([(torch.tensor([x]), 0)] * 9) for x in (5.0, 1.0))
        >>> [sample.inputs[0][0].item() for sample in samples_of_each(module, "model", [day, night], None, limit=4)]
        [5.0, 5.0, 1.0, 1.0]
    """
    failed: list[Exception] = []
    left = limit
    for number, loader in enumerate(loaders, start=1):
        share = math.ceil(left / (len(loaders) - number + 1))
        try:
            for sample in samples_of(module, name, islice(loader, share), datamodule):
                left -= 1
                yield sample
        except Exception as error:  # whatever the user's code raises where it was not written for
            failed.append(error)
            if len(loaders) > 1:
                reason = f"{type(error).__name__}: {one_line(error)}"
                rank_zero_info(f"lq: batches of data loader {number} are left out ({reason})")
    if len(failed) == len(loaders) and failed:
        raise failed[0]


def _loaders_for(module: LightningModule, batches: list[Any]) -> Any:
    """Loaders that give these batches; two if the step asks which loader they come from, as Lightning then wants."""
    loader: Any = DataLoader(batches, batch_size=None, collate_fn=_as_it_is)  # type: ignore[arg-type]
    asks = "dataloader_idx" in signature(module.validation_step).parameters
    return [loader, DataLoader([])] if asks else loader  # type: ignore[arg-type]


def _as_it_is(batch: Any) -> Any:
    return batch
