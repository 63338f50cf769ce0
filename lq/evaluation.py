"""Several versions of the target, judged on what really reaches it during validation.

The target's inputs are tapped while the user's own ``validation_step`` runs, so any batch layout, number of inputs and
keyword works, and every version sees the same tensors.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import Metric

from lq.console import BatchCounter
from lq.export.rows import FP32
from lq.export.signature import Inputs
from lq.export.torchscript import int8_kernels
from lq.metrics import ModelComparison, main_tensor, targets_of
from lq.metrics.comparison import AnyMetric
from lq.target import detached_copy, target_of

Results = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Judge:
    """The data and the metric that versions of a model are compared by.

    Args:
        loaders: validation data loaders; None if there are none.
        datamodule: the run's datamodule, whose transfer hooks belong to the loaders.
        metric: any torchmetrics metric, or None for multiclass accuracy.
        target_fn: batch -> what the metric compares with; None for :func:`lq.metrics.targets_of`.
        limit: Lightning's ``limit_val_batches``.
        show_progress: whether to show how far the comparison is.
    """

    loaders: Any = None
    datamodule: LightningDataModule | None = None
    metric: AnyMetric | None = None
    target_fn: Callable[[Any], Any] | None = None
    limit: int | float | None = None
    show_progress: bool = True


def on_cpu(data: Any) -> Any:
    """A copy of tensors in any structure, on the CPU, those of half or double precision as float32."""
    return tree_map_only(Tensor, lambda t: _as_float32(t.detach()).to("cpu", copy=True), data)


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


class Tap:
    """Remembers the last call of a module: arguments, keywords and output."""

    def __init__(self, module: nn.Module) -> None:
        self._call: tuple[tuple[Any, ...], dict[str, Any], Any] | None = None
        self._handle = module.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if is_own_forward(module):
            self._call = args, kwargs, output

    def take(self) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """The last call since the previous ``take``.

        Raises:
            ValueError: if there was none.
        """
        if self._call is None:
            raise ValueError(
                "validation_step did not call the quantized target, so there is nothing to compare: name the part that "
                "it does call, QATCallback(target=...)."
            )
        call, self._call = self._call, None
        return call

    def remove(self) -> None:
        """Stop listening."""
        self._handle.remove()


def is_own_forward(module: nn.Module) -> bool:
    """False while a strategy borrows ``forward`` of a LightningModule to reach ``training_step``."""
    return getattr(module.forward, "__func__", None) is type(module).forward


class ValidationComparison:
    """Compares other versions of the target with the tapped one ("fake"), batch by batch.

    Args:
        target: the prepared target inside the running LightningModule.
        others: name -> callable that takes the target's inputs; modules run on their own device.
        metric: any torchmetrics metric, or ``None`` for multiclass accuracy.
        target_fn: batch -> what the metric compares with; ``None`` for :func:`lq.metrics.targets_of`.
        sync: whether the metrics are reduced over all processes.
        keep: how many of the target's calls are kept in ``calls``, with what it returned.
    """

    def __init__(
        self,
        target: nn.Module,
        others: Mapping[str, Callable[..., Any]],
        metric: AnyMetric | None,
        target_fn: Callable[[Any], Any] | None,
        sync: bool,
        device: torch.device | str = "cpu",
        keep: int = 0,
    ) -> None:
        self.others, self.keep = dict(others), keep
        self.calls: list[tuple[Inputs, Tensor]] = []
        pairs = [("fake", name) for name in self.others if name != FP32]
        self.comparison = ModelComparison(["fake", *self.others], metric, pairs, device, sync_on_compute=sync)
        self.target_fn = target_fn or targets_of
        self.tap = Tap(target)

    def update(self, batch: Any) -> None:
        """Take the call that ``validation_step`` made for this batch."""
        args, kwargs, output = self.tap.take()
        outputs = {"fake": output}
        if len(self.calls) < self.keep:
            self.calls.append((on_cpu((args, kwargs)), on_cpu(main_tensor(output))))
        with torch.no_grad(), int8_kernels():
            for name, model in self.others.items():
                inputs = tree_map_only(Tensor, _as_float32, (args, kwargs))
                moved_args, moved_kwargs = move_data_to_device(inputs, _device_of(model))
                outputs[name] = model(*moved_args, **moved_kwargs)
        self.comparison.update(outputs, self.target_fn(batch))

    def finish(self) -> Results:
        """Stop listening and compute; empty if no batch was seen."""
        self.tap.remove()
        try:
            return self.comparison.compute()
        except ValueError:
            return {}


def _device_of(model: Callable[..., Any]) -> torch.device:
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((p.device for p in parameters), torch.device("cpu"))


class _CompareDuringValidation(Callback):
    def __init__(self, comparison: ValidationComparison, show_progress: bool) -> None:
        self.comparison, self.show_progress = comparison, show_progress

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = sum(trainer.num_val_batches)
        self.counter = BatchCounter("lq: comparing", batches, shown=self.show_progress).__enter__()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.counter.__exit__()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.counter.__exit__()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        self.comparison.update(args[1])
        self.counter.advance()


def compare_on_validation_data(
    module: LightningModule, name: str, others: Mapping[str, Callable[..., Any]], judge: Judge, keep: int = 0
) -> tuple[Results, list[tuple[Inputs, Tensor]]]:
    """Run ``validation_step`` over all validation data on the CPU and compare ``others`` with the module's own target.

    It runs in this process alone, over the data of all processes.

    Args:
        module: a copy of the user's module that nothing else uses.
        name: of its target.
        others: versions of the target to compare.
        judge: data and metric.
        keep: how many of the target's calls to return.

    Returns:
        what :meth:`lq.metrics.ModelComparison.compute` returns, and the first calls: inputs and main output of each.
        Both are empty if there were no data.
    """
    target = target_of(module, name)
    comparison = ValidationComparison(target, others, judge.metric, judge.target_fn, sync=False, keep=keep)
    for metric in (m for m in module.modules() if isinstance(m, Metric)):
        metric.distributed_available_fn = _alone
    _without_prepare_data(module)
    loaders = _undistributed(judge.loaders)
    with quiet_lightning():
        trainer = _quiet_trainer(
            limit_val_batches=judge.limit, callbacks=[_CompareDuringValidation(comparison, judge.show_progress)]
        )
        data: dict[str, Any] = {"dataloaders": loaders}
        if judge.datamodule is not None:
            data = {"datamodule": _ready_datamodule(judge.datamodule, loaders)}
        trainer.validate(module, verbose=False, **data)
    return comparison.finish(), comparison.calls


def first_validation_call(
    module: LightningModule, name: str, datamodule: LightningDataModule | None = None
) -> tuple[Inputs, Any]:
    """What reaches the target in the first validation step, and the loaders that it came from.

    Args:
        module: any LightningModule; a copy runs, on the CPU.
        name: of its target.
        datamodule: its data; ``None`` takes the module's own ``val_dataloader``.

    Returns:
        inputs of the call, on the CPU, and the validation loaders.

    Raises:
        ValueError: if the validation step does not call the target.
    """
    twin = detached_copy(module)
    tap = Tap(target_of(twin, name))
    with quiet_lightning():
        trainer = _quiet_trainer(limit_val_batches=1)
        trainer.validate(twin, datamodule=datamodule, verbose=False)
    args, kwargs, _ = tap.take()
    return on_cpu((args, kwargs)), trainer.val_dataloaders


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


def _quiet_trainer(**settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=DummyLogger(),  # for modules that log images and the like
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,  # it would end that of the run, which is still on the screen
        **settings,
    )


def _ready_datamodule(datamodule: LightningDataModule, loaders: Any) -> LightningDataModule:
    """A copy that is set up already and gives these loaders; its transfer hooks are those of the original."""
    ready: Any = copy.copy(datamodule)
    _without_prepare_data(ready)
    ready.setup = ready.teardown = lambda stage: None
    ready.val_dataloader = lambda: loaders
    return ready  # type: ignore[no-any-return]


def _without_prepare_data(owner: LightningDataModule | LightningModule) -> None:
    """Lightning (2.6) lets all processes meet around ``prepare_data`` if it is overridden, but the others wait."""
    base = LightningModule if isinstance(owner, LightningModule) else LightningDataModule
    owner.__dict__["prepare_data"] = MethodType(base.prepare_data, owner)


def _undistributed(loaders: Any) -> Any:
    """The loaders without the samplers that leave each process a share of the data."""
    if isinstance(loaders, (list, tuple)):
        return [_undistributed(loader) for loader in loaders]
    if isinstance(loaders, Mapping):
        return {key: _undistributed(loader) for key, loader in loaders.items()}
    if not (isinstance(loaders, DataLoader) and isinstance(loaders.sampler, DistributedSampler)):
        return loaders
    return DataLoader(
        loaders.dataset,
        batch_size=loaders.batch_size,
        num_workers=loaders.num_workers,
        collate_fn=loaders.collate_fn,
        worker_init_fn=loaders.worker_init_fn,
    )


def _alone() -> bool:
    """Tells a metric that there is no other process: the others wait."""
    return False


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's lines and warnings on the hardware that it found and the loaders that it was given."""
    names = [n for n in logging.root.manager.loggerDict if n.startswith(("lightning.pytorch", "lightning.fabric"))]
    loggers = [logging.getLogger(name) for name in {"lightning.pytorch", "lightning.fabric", *names}]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
