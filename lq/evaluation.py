"""Several versions of the target, judged on what really reaches it during validation.

The target's inputs are tapped while the user's own ``validation_step`` runs, so any batch layout, number of inputs and
keyword works, and every version sees the same tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lq.metrics import ModelComparison, targets_of
from lq.metrics.comparison import AnyMetric
from lq.target import target_of

Results = dict[str, dict[str, float]]
Call = tuple[tuple[Any, ...], dict[str, Any], Any]


class Tap:
    """Remembers the last call of a module: arguments, keywords and output."""

    def __init__(self, module: nn.Module) -> None:
        self._call: Call | None = None
        self._handle = module.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if is_own_forward(module):
            self._call = args, kwargs, output

    def take(self) -> Call:
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
    """

    def __init__(
        self,
        target: nn.Module,
        others: Mapping[str, Callable[..., Any]],
        metric: AnyMetric | None,
        target_fn: Callable[[Any], Any] | None,
        sync: bool,
        device: torch.device | str = "cpu",
    ) -> None:
        self.others = dict(others)
        pairs = [("fake", "int8")] if "int8" in self.others else []
        self.comparison = ModelComparison(["fake", *self.others], metric, pairs, device, sync_on_compute=sync)
        self.target_fn = target_fn or targets_of
        self.tap = Tap(target)

    def update(self, batch: Any) -> None:
        """Take the call that ``validation_step`` made for this batch."""
        args, kwargs, output = self.tap.take()
        outputs = {"fake": output}
        with torch.no_grad():
            for name, model in self.others.items():
                device = _device_of(model)
                outputs[name] = model(*move_data_to_device(args, device), **move_data_to_device(kwargs, device))
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
    def __init__(self, comparison: ValidationComparison) -> None:
        self.comparison = comparison

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.comparison.update(batch)


def compare_on_validation_data(
    module: LightningModule,
    name: str,
    others: Mapping[str, Callable[..., Any]],
    loaders: Any,
    *,
    metric: AnyMetric | None = None,
    target_fn: Callable[[Any], Any] | None = None,
    limit: int | float | None = None,
    progress_bar: bool = True,
) -> Results:
    """Run ``validation_step`` over all of ``loaders`` on the CPU and compare ``others`` with the module's own target.

    Args:
        module: a copy of the user's module that nothing else uses.
        name: of its target.
        others: versions of the target to compare.
        loaders: validation data loaders.
        metric: see :class:`ValidationComparison`.
        target_fn: see :class:`ValidationComparison`.
        limit: Lightning's ``limit_val_batches``.
        progress_bar: whether to show one.

    Returns:
        what :meth:`lq.metrics.ModelComparison.compute` returns.
    """
    comparison = ValidationComparison(target_of(module, name), others, metric, target_fn, sync=False)
    with quiet_lightning():
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress_bar,
            limit_val_batches=limit,
            callbacks=[_CompareDuringValidation(comparison)],
        )
        trainer.validate(module, loaders, verbose=False)
    return comparison.finish()


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's lines on the hardware found."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    names = [n for n in logging.root.manager.loggerDict if n.startswith(("lightning.pytorch", "lightning.fabric"))]
    loggers += [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
