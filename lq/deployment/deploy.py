"""Delivery with judgement: on the user's own validation data after a training, or on batches without any training."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lq.checks import as_dataclass, check_module, check_path
from lq.conversion.graph import as_graph
from lq.conversion.on_cpu import on_cpu_in_float32
from lq.deployment.evaluation import ValidationData, compare_on_validation_data
from lq.deployment.gated_export import gated_export
from lq.deployment.results import Compared, Deployment
from lq.deployment.settings import DEFAULT_EXPORTERS, ExportSettings
from lq.export.artifact.calls import in_float32
from lq.export.artifact.directory import AnyPath
from lq.export.artifact.int8_model import Int8Model
from lq.export.exporters import ExporterChoice
from lq.export.parity.gate import Gate
from lq.lightning_module.target import prepared_graph
from lq.metrics.detections import comparable
from lq.ptq.batches import call_of_batch, check_batches
from lq.timing.rows import FP32, PTQ
from lq.tracing.axes import DynamicAxes
from lq.tracing.batch import images_at_once
from lq.tracing.exported_call import call_to_export, without_unread
from lq.tracing.images import each_image
from lq.tracing.structure import Inputs, tensors_of


@dataclass(frozen=True)
class Baseline:
    """The float model that QAT started from.

    Args:
        model: the float target, on the CPU.
        results: its metrics, where they were measured before.
        has_weights: whether ``model`` holds the weights from which QAT started; a run that was resumed has lost them.
        rest: the weights of the LightningModule outside of the target at that time, by their names.
        ptq: metrics of the model quantized without training, if QAT started from ranges that were calibrated.

    Example:
        >>> head = nn.Linear(2, 1)
        >>> baseline = Baseline(head, {"val_loss": 0.03}, rest={"body.weight": torch.ones(2, 2)})
        >>> list(baseline.weights("head"))
        ['body.weight', 'head.weight', 'head.bias']
    """

    model: nn.Module | None = None
    results: Mapping[str, float] = field(default_factory=dict)
    has_weights: bool = True
    rest: Mapping[str, Any] = field(default_factory=dict)
    ptq: Mapping[str, float] = field(default_factory=dict)

    def weights(self, name: str) -> dict[str, Any]:
        """All weights by their names in the LightningModule, whose target has this name."""
        prefix = f"{name}." if name else ""
        state = {} if self.model is None else self.model.state_dict()
        return {**self.rest, **{prefix + key: value for key, value in state.items()}}


def deploy(
    module: LightningModule,
    name: str,
    example: Inputs,
    validation: ValidationData,
    settings: ExportSettings | None = None,
    baseline: Baseline | None = None,
) -> Deployment:
    r"""Deliver the target of a trained module, judged on its validation data.

    Args:
        module: a copy of the trained module that nothing else uses.
        name: of its target.
        example: inputs of one call of the target, on the CPU.
        validation: data and metric.
        settings: what to deliver; ``None`` is TorchScript, not written.
        baseline: for the FP32 row.

    Returns:
        the deployment; see :meth:`lq.deployment.results.Deployment.raise_failures`.

    Example:
        >>> import lightning as L
        >>> from torch.utils.data import DataLoader
        >>> from lq.backends.prepare import prepare
        >>> from lq.ptq.calibrate import calibrate
        >>> class Doubling(L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Linear(1, 1))
        ...
        ...     def validation_step(self, x, batch_idx):
        ...         self.log("val_error", (self.net(x) - 2 * x).abs().mean())
        >>> module, x = Doubling(), torch.rand(8, 1)
        >>> _ = calibrate(prepare(module.net, example_args=(x,)), [x])
        >>> done = deploy(module, "net", ((x,), {}), ValidationData(DataLoader(x, batch_size=8), show_progress=False))
        >>> [(version, list(figures)) for version, figures in done.results.items()]
        [('fake', ['val_error']), ('torch', ['val_error']), ('torch_vs_fake', ['sqnr_db', 'max_abs_error'])]
        >>> done.parity["torch"].passed, done.directory
        (True, None)
    """
    example = in_float32(module, example)
    module, baseline = module.cpu().float(), baseline or Baseline()

    def compare(models: Mapping[str, Int8Model], keep: int) -> Compared:
        compared = _on_validation_data(module, name, models, baseline, validation, keep)
        known = {version: found for version, found in ((FP32, baseline.results), (PTQ, baseline.ptq)) if found}
        results = {**known, **compared.results}
        if compared.accuracy is not None:
            results = {version: compared.accuracy.added_to(figures) for version, figures in results.items()}
        return replace(compared, results=results)

    settings = settings or ExportSettings()
    prepared = prepared_graph(module, name, example, settings.axes)
    return gated_export(prepared, example, compare, settings, baseline.model)


def export_artifact(
    prepared: nn.Module,
    batches: Iterable[Any],
    directory: AnyPath,
    exporters: Sequence[ExporterChoice] = DEFAULT_EXPORTERS,
    gate: Gate | None = None,
    float_model: nn.Module | None = None,
    dynamic_axes: DynamicAxes | None = None,
) -> Deployment:
    """Export a trained or calibrated model for one or more runtimes, without a Trainer.

    Args:
        prepared: from :func:`lq.prepare`, trained or calibrated; it is not changed.
        batches: data for the parity gate, e.g. a DataLoader; how its batches are read, labels included, is said in
            :func:`~lq.ptq.batches.call_of_batch`.
        directory: of the artifact, or a URL that fsspec knows.
        exporters: names, or ``{name: options}``.
        gate: how closely each file has to agree with ``prepared``; ``None`` is the default.
        float_model: for the FP32 row of the table.
        dynamic_axes: for each input, dimensions beside the batch whose size shall be open, as a list or as a mapping
            to names: ``{"x": {2: "height", 3: "width"}}``. What is exported is compared at another size, too.

    Returns:
        the loaded models, the rows of the table, and what the gate measured.

    Raises:
        ValueError: if ``prepared`` has no ranges, ``batches`` is empty or does not fit, an exporter or option does
            not exist, or the code makes a dynamic axis a constant.
        ImportError: if an exporter needs a package that is not installed.
        RuntimeError: if a file does not pass the gate or cannot be made; the others are written.

    Example:
        >>> import lq, tempfile
        >>> x = torch.randn(64, 4)
        >>> prepared = lq.prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> _ = lq.calibrate(prepared, [x])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export_artifact(prepared, [x], f"{folder}/int8", ["torch", "pt2"])
        >>> {kind: parity.passed for kind, parity in done.parity.items()}
        {'torch': True, 'pt2': True}
    """
    check_module("prepared", prepared)
    check_path("directory", directory, "runs/int8")
    check_batches(batches, "export_artifact()")
    if float_model is not None:
        check_module("float_model", float_model)
    settings = ExportSettings(exporters, as_dataclass(Gate, gate, "gate"), directory, dynamic_axes=dynamic_axes)
    kept: list[Inputs] = []
    for given in batches:
        kept.append(call_of_batch(prepared, in_float32(prepared, given)))
        _check_call(prepared, kept[-1])
        if len(kept) == settings.gate.batches:
            break
    if not kept:
        raise ValueError("batches is empty; give at least one, such as [next(iter(loader))[0]].")

    example = call_to_export(prepared, kept[0])
    twin = on_cpu_in_float32(as_graph(prepared, example, axes=settings.axes))
    if images_at_once(twin) is not None:
        kept = [call for inputs in kept for call in each_image(without_unread(prepared, inputs))]

    def compare(models: Mapping[str, Int8Model], keep: int) -> Compared:
        with torch.no_grad():
            return Compared(calls=[((args, kwargs), comparable(twin(*args, **kwargs))) for args, kwargs in kept[:keep]])

    deployment = gated_export(twin, example, compare, settings, float_model)
    deployment.raise_failures()
    return deployment


def _check_call(prepared: nn.Module, call: Inputs) -> None:
    try:
        inspect.signature(prepared.forward).bind(*call[0], **call[1])
    except TypeError as error:
        raise ValueError(
            f"a batch does not fit {type(prepared).__name__}.forward: {error}. Give tensors, tuples that begin with "
            "its positional arguments, or mappings of its keyword arguments."
        ) from None
    if not any(x.numel() for x in tensors_of(call)):
        raise ValueError("a batch has no sample; give batches of at least one.")


def _on_validation_data(
    module: LightningModule,
    name: str,
    models: Mapping[str, Callable[..., Any]],
    baseline: Baseline,
    validation: ValidationData,
    keep: int,
) -> Compared:
    versions = dict(models)
    if baseline.model is not None and baseline.has_weights and not baseline.results:
        versions[FP32] = baseline.model.eval()
    if validation.loaders is not None:
        try:
            return compare_on_validation_data(module, name, versions, validation, keep, baseline.weights(name))
        except Exception as error:  # whatever the user's validation code cannot do outside its own run
            warnings.warn(
                f"lq: int8 could not be evaluated on the validation data, so the table lacks its figures: {error}",
                stacklevel=2,
            )
    return Compared()
