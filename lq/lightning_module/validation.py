"""The user's own validation outside of their run: on a copy of the module, in this process, on the CPU."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import numpy
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torchmetrics import Metric

from lq.compat.lightning_private import validation_loaders_of
from lq.compat.packages import is_lightning_module, of_package
from lq.lightning_module.copies import detached_copy
from lq.lightning_module.last_call import LastCall, on_cpu
from lq.lightning_module.loaders import generators_kept, spread, undistributed
from lq.lightning_module.quiet import quiet_lightning, quiet_trainer
from lq.lightning_module.target import target_of
from lq.metrics.comparison import keep_local
from lq.tracing.exported_call import call_to_export
from lq.tracing.structure import Inputs

_FEW = 8  # batches


class Sample(NamedTuple):
    """What one validation batch is to the target, on the CPU: the inputs of the call, and the labels of the batch.

    ``inputs`` are positional and keyword arguments, of floats in float32. ``labels`` are what ``target_fn`` returns.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from lq.models.image_classifier import ImageClassifier
        >>> module = ImageClassifier(torch.nn.Linear(2, 2), num_classes=2)
        >>> loader = DataLoader([(torch.ones(2), 1), (torch.zeros(2), 0)], batch_size=2)
        >>> (sample,) = validation_samples(module, "model", loader, None, lambda batch: batch[1], 1)
        >>> sample
        Sample(inputs=((tensor([[1., 1.], [0., 0.]]),), {}), labels=tensor([1, 0]))
    """

    inputs: Inputs
    labels: Any


def call_sample(model: Callable[..., Any], sample: Sample) -> Any:
    """Call a target as the validation step did; the sample stays as it is, even if the model works in place.

    Example:
        >>> sample = Sample(((torch.zeros(2, 3),), {"inplace": True}), None)
        >>> call_sample(torch.nn.functional.hardsigmoid, sample)
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]])
        >>> sample.inputs[0][0].sum()
        tensor(0.)
    """
    args, kwargs = copy.deepcopy(sample.inputs)
    return model(*args, **kwargs)


def labels_of(sample: Sample) -> Any:
    """The labels, for functions that take one to call the model and one to find the labels.

    Example:
        >>> labels_of(Sample(((torch.zeros(2, 3),), {}), torch.tensor([1, 0])))
        tensor([1, 0])
    """
    return sample.labels


def validate_alone(
    module: LightningModule,
    loaders: Any,
    datamodule: LightningDataModule | None,
    limit: int | float | None,
    *callbacks: Callback,
) -> dict[str, float]:
    """Run ``validation_step`` over the validation data of all processes, in this one alone.

    It draws the same random numbers of Python, NumPy and torch (on the CPU) in each call, so that the figures of two
    models can be compared, and those that the training draws stay what they would be. The same holds for generators of
    the user's own, such as that of a loader that shuffles.

    Args:
        module: a copy of the user's module that nothing else uses.
        loaders: validation data loaders.
        datamodule: the run's datamodule, whose transfer hooks belong to the loaders.
        limit: Lightning's ``limit_val_batches``.
        callbacks: listen.

    Returns:
        what the module has logged: the last value of each name.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from lq.models.image_classifier import ImageClassifier
        >>> module = ImageClassifier(torch.nn.Identity(), num_classes=2)
        >>> loader = DataLoader([(torch.tensor([0.0, 9.0]), 1), (torch.tensor([0.0, 9.0]), 0)], batch_size=1)
        >>> [validate_alone(module, loader, None, limit)["val/accuracy"] for limit in (1, None)]
        [1.0, 0.5]
    """
    for metric in (m for m in module.modules() if isinstance(m, Metric)):
        keep_local(metric)  # the other processes wait
        metric.reset()
    _without_prepare_data(module)
    loaders = undistributed(loaders)
    with quiet_lightning(), isolate_rng(include_cuda=False), generators_kept(loaders):
        _seed()
        trainer = quiet_trainer(module, limit_val_batches=limit, callbacks=list(callbacks))
        data: dict[str, Any] = {"dataloaders": loaders}
        if datamodule is not None:
            data = {"datamodule": _ready_datamodule(datamodule, loaders)}
        trainer.validate(module, verbose=False, **data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def validation_samples(
    module: LightningModule,
    name: str,
    loaders: Any,
    datamodule: LightningDataModule | None,
    target_fn: Callable[[Any], Any],
    batches: int | None,
) -> list[Sample]:
    """What reaches the target in some validation batches, and their labels.

    Args:
        module: any LightningModule; a copy runs.
        name: of its target.
        loaders: validation data loaders; of one that holds a list of samples, batches are drawn from all of it, since
            the first ones may show a few classes only.
        datamodule: as for :func:`validate_alone`.
        target_fn: batch -> labels.
        batches: how many at most, of each loader; None for all.

    Returns:
        the samples; none if there are no data.

    Raises:
        ValueError: if the validation step does not call the target, or ``target_fn`` finds no labels.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from lq.models.image_classifier import ImageClassifier
        >>> module = ImageClassifier(torch.nn.Linear(1, 2), num_classes=2)
        >>> loader = DataLoader([(torch.tensor([float(i)]), i // 5) for i in range(10)], batch_size=2)
        >>> for sample in validation_samples(module, "model", loader, None, lambda batch: batch[1], 2):
        ...     sample.inputs[0][0].flatten().tolist(), sample.labels.tolist()
        ([0.0, 3.0], [0, 0])
        ([6.0, 9.0], [1, 1])
    """
    twin = detached_copy(module).float()  # as its data are, whatever the precision of the training
    collector = SampleCollector(LastCall(target_of(twin, name)), target_fn)
    chosen = loaders if batches is None else spread(loaders, batches)
    validate_alone(twin, chosen, datamodule, batches, collector)
    collector.tap.check()
    return collector.samples


class SampleCollector(Callback):
    """Keeps what reaches the target in each batch of a validation, unless the step skips that, on the CPU.

    Args:
        tap: listens to the target.
        target_fn: batch -> labels.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from lq.models.image_classifier import ImageClassifier
        >>> module = ImageClassifier(torch.nn.Linear(2, 2), num_classes=2)
        >>> collector = SampleCollector(LastCall(module.model), lambda batch: batch[1])
        >>> trainer = quiet_trainer(module, callbacks=[collector])
        >>> _ = trainer.validate(module, DataLoader([(torch.ones(2), 1)]), verbose=False)
        >>> collector.samples
        [Sample(inputs=((tensor([[1., 1.]]),), {}), labels=tensor([1]))]
    """

    def __init__(self, tap: LastCall, target_fn: Callable[[Any], Any]) -> None:
        self.tap, self.target_fn = tap, target_fn
        self.samples: list[Sample] = []

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Take the call; ``args`` are outputs, batch, batch_idx and dataloader_idx."""
        call = self.tap.take()
        if call is None:  # a batch that the step skips
            return
        given, keywords, _ = call
        with torch.inference_mode(False):  # so that they can be used outside of it
            self.samples.append(Sample(on_cpu((given, keywords)), on_cpu(self.target_fn(args[1]))))


def first_validation_call(
    module: LightningModule, name: str, datamodule: LightningDataModule | None = None
) -> tuple[Inputs, Any]:
    """What reaches the target in one of the first validation steps, and the loaders that it came from.

    Args:
        module: any LightningModule; a copy runs, on the CPU.
        name: of its target.
        datamodule: its data; ``None`` takes the module's own ``val_dataloader``.

    Returns:
        inputs of the call, on the CPU, and the validation loaders.

    Raises:
        ValueError: if there is no batch, or the validation step does not call the target.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from lq.models.image_classifier import ImageClassifier
        >>> class WithData(ImageClassifier):
        ...     def val_dataloader(self):
        ...         return DataLoader([(torch.ones(2), 1)], batch_size=1)
        >>> inputs, loader = first_validation_call(WithData(torch.nn.Linear(2, 2), num_classes=2), "model")
        >>> inputs, len(loader)
        (((tensor([[1., 1.]]),), {}), 1)
    """
    twin = detached_copy(module)
    tap = LastCall(target_of(twin, name))
    for limit in (1, _FEW, 1.0):  # the step may skip the first batches
        with quiet_lightning():
            trainer = quiet_trainer(twin, limit_val_batches=limit)
            trainer.validate(twin, datamodule=datamodule, verbose=False)
        if not any(trainer.num_val_batches):
            raise ValueError(
                "the validation data have no batch, so there is nothing to compare: val_dataloader() has to give one."
            )
        call = tap.take()
        if call is not None:
            break
    tap.check()
    assert call is not None
    args, kwargs, _ = call
    return call_to_export(target_of(twin, name), on_cpu((args, kwargs))), validation_loaders_of(trainer)


def _ready_datamodule(datamodule: LightningDataModule, loaders: Any) -> LightningDataModule:
    """A copy that is set up already and gives these loaders; its transfer hooks are those of the original."""
    ready: Any = copy.copy(datamodule)
    _without_prepare_data(ready)
    ready.setup = ready.teardown = lambda stage: None
    ready.val_dataloader = lambda: loaders
    return ready  # type: ignore[no-any-return]


def _without_prepare_data(owner: LightningDataModule | LightningModule) -> None:
    """Lightning (2.6) lets all processes meet around ``prepare_data`` if it is overridden, but the others wait."""
    base = of_package(LightningModule if is_lightning_module(owner) else LightningDataModule, owner)
    owner.__dict__["prepare_data"] = MethodType(base.prepare_data, owner)


def _seed() -> None:
    torch.default_generator.manual_seed(0)  # torch.manual_seed would reach the accelerators, too
    random.seed(0)
    numpy.random.seed(0)
