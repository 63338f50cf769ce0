"""Validation in a run: other versions of the target are judged beside the fake-quantized one."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from lq.backends.float_module import check_weights
from lq.callback.float_reference import FloatReference
from lq.callback.processes import on_first_process
from lq.conversion.convert import convert
from lq.core.sharding import is_sharded
from lq.deployment.evaluation import Results, ValidationComparison, ValidationData, own_figures
from lq.lightning_module.copies import detached_copy
from lq.lightning_module.target import prepared_graph, target_of
from lq.tracing.axes import Axes
from lq.tracing.structure import Inputs


class ValidationRound:
    """One validation of a run: what the target computes, beside FP32 and int8 where they are due.

    Args:
        trainer: of the run.
        module: the running LightningModule.
        name: of its target.
        reference: the float model; it is judged once, and gets its figures.
        validation: metric and labels.
        versions: "fp32" and "int8", each where it is due.
        example: inputs of the call that is exported; ``None`` takes those of the target's first call.
        axes: dimensions of inputs that are dynamic beside the batch.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from lq.backends.prepare import prepare
        >>> from lq.lightning_module.quiet import quiet_trainer
        >>> from lq.models.image_classifier import ImageClassifier
        >>> module = ImageClassifier(prepare(nn.Sequential(nn.Linear(2, 2))), num_classes=2)
        >>> x, trainer, reference = torch.tensor([0.0, 9.0]), quiet_trainer(module), FloatReference(nn.Identity())
        >>> data = ValidationData(DataLoader([(x, 1), (x, 0)]), show_progress=False)
        >>> running = ValidationRound(trainer, module, "model", reference, data, ["fp32"])
        >>> running.begin()
        >>> _ = module(x[None]), running.update((x[None], torch.tensor([1])))
        >>> fp32 = running.finish(data)["fp32"]
        >>> fp32["accuracy"], fp32["val/accuracy"]  # of the batch above; of the module's own validation
        (1.0, 0.5)
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        name: str,
        reference: FloatReference,
        validation: ValidationData,
        versions: Collection[str] = (),
        example: Inputs | None = None,
        axes: Axes | None = None,
    ) -> None:
        self.trainer, self.module, self.name, self.reference = trainer, module, name, reference
        self.validation, self.due, self.example, self.axes = validation, versions, example, axes
        self.versions: dict[str, nn.Module] = {}
        self._twin: LightningModule | None = None
        self._comparison: ValidationComparison | None = None

    def begin(self) -> None:
        """Make the versions, unless they are there: before the first batch, when the module holds nothing of it yet.

        And not at the start of the validation, behind which averages take the place of weights.
        """
        if self._comparison is not None:
            return
        module, reference = self.module, self.reference
        if "fp32" in self.due and reference.model is not None and reference.is_due:
            self.versions["fp32"] = reference.model.to(module.device).eval()
        with torch.inference_mode(False), torch.no_grad():
            is_split = is_sharded(module)  # then all processes have to give their parts
            if "int8" in self.due:
                self._add_int8(detached_copy(module) if is_split else module)
            if self.versions and (self.trainer.is_global_zero or is_split):
                self._twin = detached_copy(module).float()
        self._comparison = ValidationComparison(
            target_of(module, self.name),
            self.versions,
            self.validation.metric,
            self.validation.target_fn,
            sync=True,
            device=module.device,
        )

    def _add_int8(self, module: LightningModule) -> None:
        prepared = prepared_graph(module, self.name, self.example, self.axes)
        try:
            check_weights(prepared)
        except ValueError as error:  # the best checkpoint, from before, can still be delivered
            rank_zero_warn(f"lq: no figures of int8: {error}")
        else:
            self.versions["int8"] = convert(prepared)

    def update(self, batch: Any) -> None:
        """Take the call that ``validation_step`` made for this batch."""
        if self._comparison is not None:
            self._comparison.update(batch)

    def stop(self) -> None:
        """Stop listening, and compute nothing: that would wait for other processes."""
        if self._comparison is not None:
            self._comparison.stop()

    def finish(self, validation: ValidationData) -> Results:
        """The figures of all versions, by those: the metric's, and what the module's own validation logs.

        For the latter each version takes a pass over the validation data, in the first process and on the CPU, while
        the others wait.

        Args:
            validation: the validation data.

        Returns:
            the figures; none of its own of a version that the user's code cannot be run with, which a warning says.
        """
        self.begin()  # in a process without a batch
        assert self._comparison is not None
        results = self._comparison.finish()
        if self.reference.model is not None:
            self.reference.model.cpu()
        if self.versions:
            for version, own in on_first_process(self.trainer, lambda: self._own_figures(validation)).items():
                results[version] = own | results.get(version, {})
        if "fp32" in self.versions:
            self.reference.take_results(results.get("fp32", {}))
        return results

    def _own_figures(self, validation: ValidationData) -> Results:
        found: Results = {}
        weights = self.reference.baseline().weights(self.name)
        assert self._twin is not None
        with torch.inference_mode(False):
            for version, model in self.versions.items():
                try:
                    found[version] = own_figures(self._twin, self.name, validation, version, model, weights)
                except Exception as error:  # whatever the user's validation cannot do outside of its own run
                    reason = f"{version} could not be evaluated on the validation data: {type(error).__name__}: {error}"
                    warnings.warn(f"lq: {reason}", stacklevel=2)
        return found


def log_at_the_end(trainer: Trainer, results: Mapping[str, Mapping[str, float]], exporter: str) -> None:
    """Log the figures of the closing table that the fit has not logged, and those of the first exporter as "int8".

    Args:
        trainer: at the end of a fit.
        results: figures by version.
        exporter: the first one.

    Example:
        >>> from lq.lightning_module.quiet import quiet_trainer
        >>> trainer = quiet_trainer(LightningModule())
        >>> log_at_the_end(trainer, {"fake": {"accuracy": 0.75}, "onnx": {"accuracy": 0.5}}, exporter="onnx")
        >>> trainer.callback_metrics
        {'qat/fake/accuracy': tensor(0.7500), 'qat/int8/accuracy': tensor(0.5000)}
    """
    versions = {"fp32": "fp32", "fake": "fake", "int8": exporter}
    found = figures_of({version: dict(results.get(source, {})) for version, source in versions.items()})
    known = trainer.callback_metrics
    figures = {name: value for name, value in found.items() if name.startswith("qat/int8") or name not in known}
    if not figures:
        return
    known.update({name: torch.tensor(value) for name, value in figures.items()})
    epoch = {"epoch": max(trainer.current_epoch - 1, 0)}  # the last one that ran
    for logger in trainer.loggers:
        logger.log_metrics({**epoch, **figures}, step=trainer.global_step)


def figures_of(results: Results) -> dict[str, float]:
    """What is logged: ``qat/<version>/<metric>``.

    Example:
        >>> figures_of({"fake": {"accuracy": 0.9}})
        {'qat/fake/accuracy': 0.9}
    """
    return {f"qat/{version}/{metric}": v for version, values in results.items() for metric, v in values.items()}
