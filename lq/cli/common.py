"""What the subcommands have in common."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn

from lq.callback import QATCallback
from lq.callback.monitors import counting_figure, higher_is_better
from lq.callback.preparation import choose_target
from lq.callback.ranges import SCALE
from lq.checkpoints.entry import CheckpointEntry
from lq.cli.weights import is_artifact, read_checkpoint, read_qat
from lq.config.qconfig import QConfig
from lq.deployment.evaluation import ValidationData
from lq.deployment.settings import ExportSettings
from lq.export.artifact.directory import AnyPath
from lq.export.artifact.remote import local_path
from lq.lightning_module.loaders import training_data
from lq.lightning_module.other_batches import samples_of_each
from lq.lightning_module.target import target_of
from lq.lightning_module.validation import Sample, call_sample
from lq.ptq.static import StaticOptions, prepare_and_calibrate
from lq.report.history import read_history
from lq.tracing.axes import DynamicAxes


def qat_callback(trainer: Trainer) -> QATCallback:
    """The QATCallback among the callbacks, or one with its defaults.

    Example:
        >>> trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        >>> qat_callback(trainer).qconfig.preset
        'portable'
    """
    found = [c for c in trainer.callbacks if isinstance(c, QATCallback)]  # type: ignore[attr-defined]
    return found[0] if found else QATCallback()


def validation_data_of(
    trainer: Trainer, callback: QATCallback, loaders: Any, datamodule: LightningDataModule | None
) -> ValidationData:
    """The validation data, and which of the figures on them counts, as a fit would have it.

    Example:
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> data = validation_data_of(trainer, QATCallback(monitor="val/f1", mode="max"), [], None)
        >>> data.monitor, data.higher_is_better
        ('val/f1', True)
    """
    return ValidationData(
        loaders,
        datamodule,
        callback.metric,
        callback.target_fn,
        trainer.limit_val_batches,
        monitor=counting_figure(trainer, callback.monitor),
        higher_is_better=higher_is_better(trainer, callback.monitor, callback.mode),
    )


def prepared_target(
    model: LightningModule,
    datamodule: LightningDataModule | None,
    callback: QATCallback,
    ckpt_path: str | None,
    weights_only: bool | None,
    calibration: int,
) -> str:
    """Prepare the target in its place, with the ranges of a QAT checkpoint or calibrated.

    Args:
        model: the LightningModule in float.
        datamodule: its training data calibrate.
        callback: names target and qconfig, if there is no QAT checkpoint.
        ckpt_path: checkpoint or artifact of a QAT run, or checkpoint of the float model; None takes that of the
            callback, or the weights as they are.
        weights_only: ``False`` reads files that hold more than plain data.
        calibration: batches to calibrate with.

    Returns:
        the target's name.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import state_of
        >>> from lq.data.digits import DigitsDataModule
        >>> from lq.models.digits import DigitsClassifier
        >>> model = DigitsClassifier(4)
        >>> prepared_target(model, DigitsDataModule(), QATCallback(), None, None, calibration=1)
        'model'
        >>> all(state_of(model.model).observed())
        True
    """
    checkpoint = (
        read_checkpoint(callback.float_ckpt_path, weights_only)
        if ckpt_path is None
        else read_qat(ckpt_path, weights_only, model)
    )
    if checkpoint is not None and checkpoint.is_qat:
        checkpoint.load_qat(model)
        return checkpoint.entry.target
    name = choose_target(model, callback.target)
    if checkpoint is not None:
        checkpoint.load_float(model)
    calibrate_target(model, name, datamodule, callback.qconfig, StaticOptions(limit=calibration))
    return name


def calibrate_target(
    model: LightningModule, name: str, datamodule: LightningDataModule | None, qconfig: QConfig, options: StaticOptions
) -> None:
    """Quantize the target in its place, calibrated by what ``validation_step`` calls it with on training batches.

    Args:
        model: the LightningModule in float.
        name: of its target.
        datamodule: its training data calibrate.
        qconfig: grids.
        options: what to do beside.

    Raises:
        ValueError: if there is no batch, or the validation step does not call the target.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import state_of
        >>> from lq.data.digits import DigitsDataModule
        >>> from lq.models.digits import DigitsClassifier
        >>> model = DigitsClassifier(4)
        >>> calibrate_target(model, "model", DigitsDataModule(), QConfig(), StaticOptions(limit=2))
        >>> state_of(model.model).specs[0].observer
        'histogram'
    """

    def call(owner: nn.Module, sample: Sample) -> Any:
        return call_sample(target_of(owner, name), sample)

    samples = samples_of_each(model, name, training_data(model, datamodule), datamodule, options.limit)
    prepare_and_calibrate(model.cpu().float().eval(), name, samples, qconfig, call, options)


def export_settings_of(
    callback: QATCallback,
    exporters: Sequence[Any] | None,
    directory: AnyPath,
    manifest: dict[str, Any],
    dynamic_axes: DynamicAxes | None = None,
) -> ExportSettings:
    """What the callback orders, with other exporters or dynamic axes if given, for another directory.

    Example:
        >>> callback = QATCallback(dynamic_axes={"x": [2, 3]})
        >>> settings = export_settings_of(callback, None, "int8", {"weights": "last.ckpt"})
        >>> settings.exporters, settings.dynamic_axes, settings.directory
        (('torch',), {'x': [2, 3]}, 'int8')
    """
    own = callback.export_settings
    chosen = own.exporters if exporters is None else tuple(exporters)
    axes = own.dynamic_axes if dynamic_axes is None else dynamic_axes
    return replace(own, exporters=chosen, directory=directory, manifest=manifest, dynamic_axes=axes)


def other_float(known: Mapping[str, float], found: Mapping[str, float]) -> str:
    """What to know if the float model is not the one that QAT started from, as after float epochs in the same fit.

    Args:
        known: figures of the one that QAT started from.
        found: figures of the float model.

    Returns:
        a sentence or two; empty if nothing speaks against the model.

    Example:
        >>> other_float({"acc": 0.99}, {"acc": 0.1})
        'QAT did not start from these float weights, so the rows FP32 and PTQ are meaningless: acc 0.1 (then 0.99). ...'
        >>> other_float({"acc": 0.99}, {"acc": 0.98})
        ''
    """
    off = [name for name in known if name in found and abs(known[name] - found[name]) > 0.05 * abs(known[name])]
    if not off:
        return ""
    here = ", ".join(f"{name} {found[name]:.4g} (then {known[name]:.4g})" for name in off)
    return (
        f"QAT did not start from these float weights, so the rows FP32 and PTQ are meaningless: {here}. Give the float "
        "checkpoint that it started from, or the last one of the float epochs: --float_ckpt_path."
    )


def run_of(artifact: str | None, ckpt_path: str | None) -> Path | None:
    """The directory of a run, from what lies in it: the artifact, or a checkpoint in ``checkpoints``.

    Args:
        artifact: of the run.
        ckpt_path: a checkpoint of the run, or its artifact; counts if ``artifact`` is ``None``.

    Returns:
        the directory; ``None`` if it is not on this machine, or nothing of the run is given.

    Example:
        >>> run_of(None, "runs/x/version_0/checkpoints/last.ckpt").name, run_of("runs/x/version_0/int8", None).name
        ('version_0', 'version_0')
    """
    known = artifact or ckpt_path
    path = None if known is None else local_path(known)
    if known is None or path is None:
        return None
    lies_in_run = artifact is not None or is_artifact(known)
    return path.absolute().parent if lies_in_run else path.absolute().parent.parent


def beside(ckpt_path: str) -> AnyPath:
    """Where the artifact of a checkpoint goes.

    Example:
        >>> beside("kept/last.ckpt").as_posix(), beside("file:///kept/last.ckpt").as_posix()
        ('kept/last-int8', '/kept/last-int8')
    """
    path = local_path(ckpt_path)
    return f"{os.path.splitext(ckpt_path)[0]}-int8" if path is None else path.with_name(f"{path.stem}-int8")


def history_of(directory: Path | None, entry: CheckpointEntry | None = None) -> list[dict[str, float]]:
    """What is known of a training, for the pictures.

    Args:
        directory: of the run, with the log of a CSVLogger.
        entry: of its checkpoint; it knows the scales, and all the rest if there is no such log.

    Returns:
        rows as of :func:`lq.report.history.read_history`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Path(folder, "metrics.csv").open("w") as log:
        ...         print("epoch,val/loss", "0,0.5", sep=os.linesep, file=log)
        ...     print(history_of(Path(folder)))
        [{'epoch': 0.0, 'val/loss': 0.5}]
    """
    kept = [] if entry is None else [dict(row) for row in entry.history]
    if directory is None or not (directory / "metrics.csv").is_file():
        return kept
    logged = read_history(directory)
    if any(key.startswith(SCALE) for row in logged for key in row):
        return logged
    scales = [{k: v for k, v in row.items() if k in ("epoch", "step") or k.startswith(SCALE)} for row in kept]
    return [*logged, *scales]
