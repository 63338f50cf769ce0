"""``lq export``: a checkpoint for one or more runtimes, without training again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lq.callback.preparation import choose_target
from lq.cli.common import beside, export_settings_of, qat_callback
from lq.cli.deployment import deploy_with_validation, deploy_without_data, has_validation_data
from lq.cli.weights import read_qat
from lq.deployment.deploy import Baseline
from lq.deployment.results import Deployment
from lq.lightning_module.copies import float_copy
from lq.lightning_module.target import target_of


def export_checkpoint(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    ckpt_path: str | None = None,
    exporters: Sequence[str | dict[str, dict[str, Any]]] | None = None,
    dynamic_axes: dict[str, list[int] | dict[int, str]] | None = None,
    export_dir: str | None = None,
    weights_only: bool | None = None,
) -> Deployment:
    """Export a QAT checkpoint for one or more runtimes, without training again.

    Metric, gate and exporters are those of the QATCallback among the callbacks, if there is one.

    Args:
        trainer: gives the callbacks.
        model: the LightningModule in float; it is prepared as the checkpoint says.
        datamodule: its validation data are what artifacts are compared on; without any, random inputs are.
        ckpt_path: a checkpoint of a QAT run, or the directory of an artifact.
        exporters: "torch", "onnx", "tensorrt", "qnn", "pt2", "openvino", "executorch", "litert", "mcu", or
            {name: options}; null is as the callback has.
        dynamic_axes: dimensions of inputs whose size the files leave open, as in {x: [2, 3]} or
            {x: {2: height, 3: width}}; null is as the callback has.
        export_dir: directory or URL of the artifact; null is beside the checkpoint, with its name and -int8.
        weights_only: refuse checkpoints that hold more than plain data; null is true.

    Returns:
        what was delivered.

    Raises:
        ValueError: if there is no checkpoint, or it does not fit.
        RuntimeError: if an exporter fails or an artifact does not pass the gate; the others are written.

    Example:
        >>> import io, tempfile, torch
        >>> from contextlib import redirect_stdout
        >>> from lq.cli.ptq import quantize_after_training
        >>> from lq.data.digits import DigitsDataModule
        >>> from lq.models.image_classifier import ImageClassifier
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        ...     trainer = Trainer(barebones=True, accelerator="cpu", default_root_dir=folder)
        ...     _ = quantize_after_training(trainer, ImageClassifier(net, 10), DigitsDataModule(), batches=1)
        ...     new = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        ...     done = export_checkpoint(trainer, ImageClassifier(new, 10), None, f"{folder}/ptq-int8")
        >>> done.directory.name, list(done.models)
        ('ptq-int8-int8', ['torch'])
    """
    if ckpt_path is None:
        raise ValueError("export needs the checkpoint of a QAT run: --ckpt_path runs/.../checkpoints/last.ckpt")
    callback = qat_callback(trainer)
    manifest: dict[str, Any] = {"weights": str(ckpt_path)}
    directory = beside(ckpt_path) if export_dir is None else export_dir
    settings = export_settings_of(callback, exporters, directory, manifest, dynamic_axes)
    checkpoint = read_qat(ckpt_path, weights_only, model)
    if not checkpoint.is_qat:
        raise ValueError(
            f"{ckpt_path} is a checkpoint of a float model: lq ptq quantizes it as it is, and lq fit trains it for "
            "int8 with --trainer.callbacks lq.QATCallback."
        )
    entry = checkpoint.entry
    manifest["target"] = entry.target
    float_model = float_copy(target_of(model, choose_target(model, entry.target))).eval()
    checkpoint.load_qat(model)
    baseline = Baseline(float_model, entry.fp32, has_weights=False)
    if not has_validation_data(model, datamodule):
        return deploy_without_data(model, entry, settings, baseline)
    return deploy_with_validation(trainer, model, entry.target, datamodule, settings, baseline)
