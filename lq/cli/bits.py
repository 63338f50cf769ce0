"""``lq bits``: how many bits each layer gets under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from lq.analysis.bits import AutoBits, choose_bits
from lq.callback.preparation import choose_target
from lq.cli.common import qat_callback
from lq.cli.values import check_counts, check_folder
from lq.cli.weights import read_checkpoint
from lq.export.exporters import ExporterChoice
from lq.lightning_module.target import target_of
from lq.lightning_module.validation import call_sample, first_validation_call, labels_of, validation_samples
from lq.metrics.outputs import plain_targets_of
from lq.report.bits import print_bits, write_bits


def choose_bits_of(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    budget: str = "effective_bits=4",
    widths: Sequence[int] | None = None,
    activation_bits: float | None = None,
    ckpt_path: str | None = None,
    batches: int = AutoBits.batches,
    exporters: Sequence[str] | None = None,
    out: str = "bits",
    weights_only: bool | None = None,
) -> None:
    """Choose the bits of weights, and of activations if wanted, that keep a budget and change the output least.

    Prints the choice, and what other sizes lose. Writes the choice as bits.yaml, a qconfig for the QATCallback, the
    frontier as frontier.json and frontier.png, and the measured losses as losses.json, which other budgets and an
    interrupted run start from.

    Args:
        trainer: gives the callbacks.
        model: the LightningModule in float.
        datamodule: its validation data are measured on.
        budget: size=2.5MB, of the deployed model; effective_bits=5, the mean bits of a weight; or latency=0.6@onnx, a
            part of what the float model takes (latency=2.5ms@onnx; torch, onnx or openvino).
        widths: bits that a layer may have, from 2 to 8, and 32 for float; null is 2 to 6 and 8, or 8 and 32 under a
            latency.
        activation_bits: mean bits of an activation's value: the bits of each activation are chosen, too; null leaves
            them as the qconfig says.
        ckpt_path: a checkpoint of the float model; null takes float_ckpt_path of the callback, or the weights as the
            model has them.
        batches: validation batches to measure on, of each data loader.
        exporters: in whose files the weights are stored; null is as the callback has.
        out: directory to write to.
        weights_only: refuse checkpoints that hold more than plain data; null is true.

    Raises:
        ValueError: if the budget cannot be read or kept, the checkpoint does not fit, or the data have no batch.

    Example:
        >>> import io, tempfile, torch
        >>> from contextlib import redirect_stdout
        >>> from lq.data.digits import DigitsDataModule
        >>> from lq.models.image_classifier import ImageClassifier
        >>> layers = [torch.nn.Linear(64, 8), torch.nn.Linear(8, 64), torch.nn.Linear(64, 10)]
        >>> model = ImageClassifier(torch.nn.Sequential(torch.nn.Flatten(), *layers), 10)
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        ...     choose_bits_of(trainer, model, DigitsDataModule(), "effective_bits=6.5", [2, 8], out=folder)
        ...     lines = Path(folder, "bits.yaml").read_text().splitlines()
        >>> lines[-4:-2]
        ["  '2':", '    weight: {quant_min: -1, quant_max: 1}']
    """
    check_counts(batches=batches)
    check_folder("out", out)
    allowed = None if widths is None else tuple(widths)
    options = AutoBits(budget, allowed, batches, Path(out) / "losses.json", activation_bits)
    callback = qat_callback(trainer)
    name = choose_target(model, callback.target)
    checkpoint = read_checkpoint(ckpt_path or callback.float_ckpt_path, weights_only)
    if checkpoint is not None:
        checkpoint.load_float(model)
    _, loaders = first_validation_call(model, name, datamodule)
    target_fn = callback.target_fn or plain_targets_of
    samples = validation_samples(model, name, loaders, datamodule, target_fn, options.batches)
    options = replace(options, batches=len(samples) or options.batches)  # of every loader
    own: list[ExporterChoice] = [chosen.choice for chosen in callback.export_settings.choices]
    target = target_of(model, name)
    stored = own if exporters is None else exporters
    found = choose_bits(target, samples, callback.qconfig, options, call_sample, labels_of, stored)
    of_activations = () if found.activations is None else found.activations.rows
    print_bits(found.rows, found.loss, str(found), activations=of_activations)
    about = f"lq bits --budget {found.budget}: {type(target).__name__}, {found.chosen['size_mb']:.4g} MB"
    files = write_bits(out, found.settings(callback.qconfig), found.rows, found.loss, about, of_activations)
    rank_zero_info(f"lq: {', '.join(path.name for path in files)} in {out}")
