"""Several versions of the target, judged on what really reaches it during validation.

The target's inputs are tapped while the user's own ``validation_step`` runs, so any batch layout, number of inputs and
keyword works, and every version sees the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from lq.backends.on_cpu import as_float32
from lq.console import BatchCounter
from lq.export.rows import FP32
from lq.export.signature import Inputs
from lq.export.torchscript import int8_kernels
from lq.metrics import ModelComparison, main_tensor, targets_of
from lq.metrics.comparison import AnyMetric
from lq.metrics.outputs import plain_targets_of
from lq.tap import Tap, on_cpu
from lq.target import target_of
from lq.validation import validate_alone

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


class ValidationComparison:
    """Compares other versions of the target with the tapped one ("fake"), batch by batch.

    Args:
        target: the prepared target inside the running LightningModule.
        others: name -> callable that takes the target's inputs; modules run on their own device.
        metric: any torchmetrics metric, or ``None`` for multiclass accuracy where the batches are plain
            classification, and none elsewhere.
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
        self.comparison = ModelComparison(
            ["fake", *self.others], metric, pairs, device, sync_on_compute=sync, optional=target_fn is None
        )
        # A metric that was asked for is given the labels as always; nothing is judged on a guess otherwise.
        self.target_fn = target_fn or (plain_targets_of if metric is None else targets_of)
        self.tap = Tap(target)

    def update(self, batch: Any) -> None:
        """Take the call that ``validation_step`` made for this batch."""
        args, kwargs, output = self.tap.take()
        outputs = {"fake": output}
        if len(self.calls) < self.keep:
            self.calls.append((on_cpu((args, kwargs)), on_cpu(main_tensor(output))))
        with torch.no_grad(), int8_kernels():
            for name, model in self.others.items():
                inputs = as_float32((args, kwargs))
                moved_args, moved_kwargs = move_data_to_device(inputs, _device_of(model))
                outputs[name] = model(*moved_args, **moved_kwargs)
        self.comparison.update(outputs, self.target_fn(batch))

    def finish(self) -> Results:
        """Stop listening and compute; empty if no batch was seen."""
        self.stop()
        return {} if self.comparison.is_empty else self.comparison.compute()

    def stop(self) -> None:
        """Stop listening."""
        self.tap.remove()


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
    listener = _CompareDuringValidation(comparison, judge.show_progress)
    validate_alone(module, judge.loaders, judge.datamodule, judge.limit, listener)
    return comparison.finish(), comparison.calls
