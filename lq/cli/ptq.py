"""``lq ptq``: quantize after training, the baseline that QAT has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lq.callback.preparation import choose_target
from lq.cli.common import calibrate_target, export_settings_of, qat_callback
from lq.cli.deployment import deploy_with_validation
from lq.cli.values import check_counts
from lq.cli.weights import read_checkpoint
from lq.deployment.deploy import Baseline
from lq.deployment.results import Deployment
from lq.lightning_module.copies import float_copy
from lq.lightning_module.target import target_of
from lq.ptq.static import StaticOptions


def quantize_after_training(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    batches: int = 100,
    batch_norm: bool = False,
    bias: bool = False,
    exporters: Sequence[str | dict[str, dict[str, Any]]] | None = None,
    dynamic_axes: dict[str, list[int] | dict[int, str]] | None = None,
    export_dir: str | None = None,
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
) -> Deployment:
    """Quantize after training: calibrate on training batches, compare, export; the baseline that QAT has to beat.

    Target, qconfig, metric, gate and exporters are those of the QATCallback among the callbacks, if there is one;
    activations are observed by histograms unless its qconfig says otherwise.

    Args:
        trainer: gives the callbacks.
        model: the trained LightningModule in float.
        datamodule: its training data calibrate, its validation data judge.
        batches: training batches to calibrate with.
        batch_norm: measure BatchNorm statistics anew behind quantized weights.
        bias: correct biases for the mean error of the weights.
        exporters: "torch", "onnx", "tensorrt", "qnn", "pt2", "openvino", "executorch", "litert", "mcu", or
            {name: options}; null is as the callback has.
        dynamic_axes: dimensions of inputs whose size the files leave open, as in {x: [2, 3]} or
            {x: {2: height, 3: width}}; null is as the callback has.
        export_dir: directory or URL of the artifact; null is ptq-int8 in the default root directory.
        ckpt_path: a float checkpoint; null takes float_ckpt_path of the callback, or the weights as the model has them.
        weights_only: refuse checkpoints that hold more than plain data; null is true.

    Returns:
        what was delivered.

    Raises:
        ValueError: if the checkpoint does not fit, or the data have no batch.
        RuntimeError: if an exporter fails or an artifact does not pass the gate; the others are written.

    Example:
        >>> import io, tempfile, torch
        >>> from contextlib import redirect_stdout
        >>> from lq.data.digits import DigitsDataModule
        >>> from lq.models.image_classifier import ImageClassifier
        >>> model = ImageClassifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), 10)
        >>> with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        ...     trainer = Trainer(barebones=True, accelerator="cpu", default_root_dir=folder)
        ...     done = quantize_after_training(trainer, model, DigitsDataModule(), batches=1)
        >>> sorted(done.results), done.directory.name
        (['fake', 'fp32', 'torch', 'torch_vs_fake'], 'ptq-int8')
    """
    check_counts(batches=batches)
    callback = qat_callback(trainer)
    name = choose_target(model, callback.target)
    checkpoint = read_checkpoint(ckpt_path or callback.float_ckpt_path, weights_only)
    if checkpoint is not None:
        checkpoint.load_float(model)
    directory = f"{trainer.default_root_dir.rstrip('/')}/ptq-int8" if export_dir is None else export_dir
    manifest = {"weights": "post-training quantization", "target": name}
    settings = export_settings_of(callback, exporters, directory, manifest, dynamic_axes)
    float_model = float_copy(target_of(model, name)).eval()
    calibrate_target(model, name, datamodule, callback.qconfig, StaticOptions(batch_norm, bias, batches))
    return deploy_with_validation(trainer, model, name, datamodule, settings, Baseline(float_model))
