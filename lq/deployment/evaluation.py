"""Several versions of the target, judged by the user's own validation.

Its figures are what the module logs in ``validation_step`` with each version in the target's place: any task, any
metric. Besides, the target's calls are tapped while that runs, so that every version sees the same tensors, and their
outputs are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn

from lq.console import BatchCounter
from lq.conversion.on_cpu import as_float32
from lq.deployment.results import Compared
from lq.deployment.same_data import SameData
from lq.export.formats.torchscript import int8_kernels
from lq.lightning_module.last_call import LastCall, on_cpu
from lq.lightning_module.stand_in import StandIn, as_float_model
from lq.lightning_module.target import target_of
from lq.lightning_module.validation import validate_alone
from lq.metrics import ModelComparison, targets_of
from lq.metrics.comparison import AnyMetric
from lq.metrics.confirmed import ConfirmedAccuracy
from lq.metrics.detections import Comparable, comparable
from lq.metrics.outputs import plain_targets_of
from lq.timing.rows import FP32
from lq.tracing.any_batch import of_any_batch
from lq.tracing.exported_call import ReadArguments
from lq.tracing.structure import Inputs

Results = dict[str, dict[str, float]]


@dataclass(frozen=True)
class ValidationData:
    """The data and the metric that versions of a model are compared by.

    Args:
        loaders: validation data loaders; None if there are none.
        datamodule: the run's datamodule, whose transfer hooks belong to the loaders.
        metric: any torchmetrics metric, or None for multiclass accuracy.
        target_fn: batch -> what the metric compares with; None for :func:`lq.metrics.targets_of`.
        limit: Lightning's ``limit_val_batches``.
        show_progress: whether to show how far the comparison is.
        monitor: the one figure that counts, of those that the module logs; ``None`` is the metric's.
        higher_is_better: which way that is better; ``None`` if nobody says.
        watchers: further callbacks of every pass.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> data = ValidationData(DataLoader(torch.rand(8, 4), batch_size=2), limit=3)
        >>> data.metric is None, data.limit  # no metric means accuracy where batches are inputs and class indices
        (True, 3)
    """

    loaders: Any = None
    datamodule: LightningDataModule | None = None
    metric: AnyMetric | None = None
    target_fn: Callable[[Any], Any] | None = None
    limit: int | float | None = None
    show_progress: bool = True
    monitor: str | None = None
    higher_is_better: bool | None = None
    watchers: tuple[Callback, ...] = ()


class ValidationComparison:
    """Compares other versions of the target with the tapped one ("fake"), batch by batch.

    A version that cannot run is left out, and ``failed`` says why.

    Args:
        target: the prepared target inside the running LightningModule.
        others: name -> callable that takes the target's inputs; modules run on their own device.
        metric: any torchmetrics metric, or ``None`` for multiclass accuracy where the batches are plain
            classification, and none elsewhere.
        target_fn: batch -> what the metric compares with; ``None`` for :func:`lq.metrics.targets_of`.
        sync: whether the metrics are reduced over all processes.
        keep: how many of the target's calls are kept in ``calls``, with what it returned.

    Example:
        >>> net, x, labels = nn.Identity(), torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([1, 0])
        >>> comparison = ValidationComparison(net, {"int8": lambda x: 0.5 * x}, None, None, sync=False)
        >>> _ = net(x)  # as validation_step does
        >>> comparison.update((x, labels))
        >>> results = comparison.finish()
        >>> results["fake"], results["int8"]
        ({'accuracy': 1.0}, {'accuracy': 1.0})
        >>> round(results["int8_vs_fake"]["sqnr_db"], 1)
        6.0
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
        self.failed: dict[str, str] = {}
        self.calls: list[tuple[Inputs, Comparable]] = []
        pairs = [("fake", name) for name in self.others if name != FP32]
        self.comparison = ModelComparison(
            ["fake", *self.others], metric, pairs, device, sync_on_compute=sync, optional=target_fn is None
        )
        # A metric that was asked for is given the labels as always; nothing is judged on a guess otherwise.
        self.target_fn = target_fn or (plain_targets_of if metric is None else targets_of)
        self.confirmed = None if sync or metric or target_fn else ConfirmedAccuracy()
        self.read = ReadArguments(target)
        self.tap = LastCall(target)

    def update(self, batch: Any) -> None:
        """Take the call that ``validation_step`` made for this batch, if it did not skip that."""
        taken = self.tap.take()
        if taken is None:
            return
        args, kwargs, output = taken
        call = self.read(args, kwargs)
        self.tap.forget()  # calls that found out what is read
        outputs = {"fake": output}
        if len(self.calls) < self.keep:
            self.calls.append((on_cpu(call), on_cpu(comparable(output))))
        with torch.no_grad(), int8_kernels():
            for name, model in list(self.others.items()):
                try:
                    outputs[name] = _answer(model, call)
                except Exception as error:  # the others are compared all the same
                    self._leave_out(name, str(error))
        self.comparison.update(outputs, self.target_fn(batch))
        if self.confirmed is not None:
            self.confirmed.update(output, batch)

    def _leave_out(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        del self.others[name]
        self.comparison.drop(name)

    def finish(self) -> Results:
        """Stop listening and compute; empty if no batch was seen.

        Raises:
            ValueError: if no batch was given to the target.
        """
        self.stop()
        self.tap.check()
        return {} if self.comparison.is_empty else self.comparison.compute()

    def stop(self) -> None:
        """Stop listening."""
        self.tap.remove()


def _answer(model: Callable[..., Any], call: Inputs) -> Any:
    args, kwargs = move_data_to_device(as_float32(call), _device_of(model))
    return of_any_batch(model)(*args, **kwargs)


def _device_of(model: Callable[..., Any]) -> torch.device:
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((p.device for p in parameters), torch.device("cpu"))


class _Counter(Callback):
    """Shows how far a pass over the validation data is."""

    def __init__(self, label: str, shown: bool) -> None:
        self.label, self.shown = label, shown
        self.counter: BatchCounter | None = None  # before the first batch the user's code may fail, too

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.counter = BatchCounter(self.label, sum(trainer.num_val_batches), shown=self.shown).__enter__()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        assert self.counter is not None
        self.counter.advance()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        if self.counter is not None:
            self.counter.__exit__()


class _CompareDuringValidation(Callback):
    def __init__(self, comparison: ValidationComparison) -> None:
        self.comparison = comparison

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        self.comparison.update(args[1])


def logged_by(
    module: LightningModule,
    name: str,
    validation: ValidationData,
    version: str,
    stand_in: Callable[..., Any] | None = None,
) -> dict[str, float]:
    """What the module itself logs in one pass over its validation data, on the CPU, in this process alone.

    Args:
        module: a copy of the user's module that nothing else uses.
        name: of its target.
        validation: the data.
        version: how the progress bar calls what is judged.
        stand_in: computes in the target's place; ``None`` leaves the target.

    Returns:
        the figures by the names that the module gives them.

    Raises:
        ValueError: if the validation step calls parts of the target only, so that nothing can stand in for it.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> class Doubling(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Identity()
        ...
        ...     def validation_step(self, x, batch_idx):
        ...         self.log("val_error", (self.net(x) - 2 * x).abs().mean())
        >>> data = ValidationData(DataLoader(torch.ones(4), batch_size=2), show_progress=False)
        >>> logged_by(Doubling(), "net", data, "the target")
        {'val_error': 1.0}
        >>> logged_by(Doubling(), "net", data, "a stand-in", lambda x: 2 * x)
        {'val_error': 0.0}
    """
    callbacks = *validation.watchers, _Counter(f"lq: validating {version}", validation.show_progress)
    if stand_in is None:
        return validate_alone(module, validation.loaders, validation.datamodule, validation.limit, *callbacks)
    with StandIn(target_of(module, name), stand_in) as answering:
        logged = validate_alone(module, validation.loaders, validation.datamodule, validation.limit, *callbacks)
    if not answering.calls:
        raise ValueError(f"validation_step calls parts of {name or 'the module'} one by one, and never all of it")
    return logged


def compare_on_validation_data(
    module: LightningModule,
    name: str,
    others: Mapping[str, Callable[..., Any]],
    validation: ValidationData,
    keep: int = 0,
    float_weights: Mapping[str, Any] | None = None,
) -> Compared:
    """Run ``validation_step`` over all validation data on the CPU and compare ``others`` with the module's own target.

    The target's outputs are compared in one pass. If the module logs figures of its own, each version is judged by them
    besides, in a pass with it in the target's place. All of it runs in this process alone, over the data of all
    processes.

    Args:
        module: a copy of the user's module that nothing else uses.
        name: of its target.
        others: versions of the target to compare.
        validation: data and metric.
        keep: how many of the target's calls to return.
        float_weights: of the module as it was in float, by their names there; for the figures of "fp32".

    Returns:
        what was found; nothing if there were no data.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> class Doubling(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Identity()
        ...
        ...     def validation_step(self, x, batch_idx):
        ...         self.log("val_error", (self.net(x) - 2 * x).abs().mean())
        >>> data = ValidationData(DataLoader(torch.ones(4), batch_size=2), show_progress=False)
        >>> found = compare_on_validation_data(Doubling(), "net", {"onnx": lambda x: 0.5 * x}, data)
        >>> found.results["fake"], found.results["onnx"]
        ({'val_error': 1.0}, {'val_error': 1.5})
        >>> round(found.results["onnx_vs_fake"]["sqnr_db"], 1)
        6.0
    """
    target = target_of(module, name)
    comparison = ValidationComparison(target, others, validation.metric, validation.target_fn, sync=False, keep=keep)
    same = SameData()
    validation = replace(validation, watchers=(*validation.watchers, same))
    own = validate_alone(
        module,
        validation.loaders,
        validation.datamodule,
        validation.limit,
        *validation.watchers,
        _CompareDuringValidation(comparison),
        _Counter("lq: comparing", validation.show_progress),
    )
    results = comparison.finish()
    if not results:
        return Compared()
    counts = frozenset({validation.monitor} if validation.monitor in own else results["fake"])
    notes = [f"{version} cannot run on the validation data: {why}" for version, why in comparison.failed.items()]
    if own:
        results["fake"] = own | results["fake"]
        for version, model in comparison.others.items():
            try:
                figures = own_figures(module, name, validation, version, model, float_weights)
                results[version] = figures | results[version]
            except Exception as error:  # what validation_step does with an output may suit the target's alone
                notes.append(f"{version} could not be evaluated by {type(module).__name__}.validation_step: {error}")
        notes += [same.note] if same.note else []
    elif not results["fake"]:
        notes.append(
            f"{type(module).__name__}.validation_step logs nothing, so the table has no figure of what the model is "
            "for: write self.log('val_...', ...) there"
        )
    accuracy = comparison.confirmed.among(own) if comparison.confirmed is not None else None
    return Compared(results, comparison.calls, counts, tuple(notes), accuracy)


def own_figures(
    module: LightningModule,
    name: str,
    validation: ValidationData,
    version: str,
    model: Callable[..., Any],
    float_weights: Mapping[str, Any] | None,
) -> dict[str, float]:
    """What the module logs with one version in the target's place: see :func:`logged_by`.

    Args:
        module: a copy of the user's module that nothing else uses.
        name: of its target, which is prepared.
        validation: the data.
        version: its name; "fp32" is the module itself in float, as far as ``float_weights`` are known.
        model: takes the inputs of the target.
        float_weights: of the module as it was in float.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from lq.backends.prepare import prepare
        >>> class Doubling(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Linear(1, 1, bias=False))
        ...
        ...     def validation_step(self, x, batch_idx):
        ...         self.log("val_error", (self.net(x) - 2 * x).abs().mean())
        >>> module, x = Doubling(), torch.ones(4, 1)
        >>> _ = prepare(module.net, example_args=(x,))
        >>> data = ValidationData(DataLoader(x, batch_size=4), show_progress=False)
        >>> own_figures(module, "net", data, "fp32", module.net, {"net.0.weight": torch.tensor([[2.0]])})
        {'val_error': 0.0}
    """
    if version == FP32 and float_weights is not None:
        with as_float_model(module, name, float_weights):
            return logged_by(module, name, validation, version)
    return logged_by(module, name, validation, version, model)
